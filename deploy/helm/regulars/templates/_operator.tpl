{{/* The pod for people, as a CronJob has it: it may look at everything that `regulars doctor` looks at. */}}
{{- define "regulars.operatorJob" -}}
{{- $ops := list -}}
{{- $operated := list -}}
{{- $callees := list -}}
{{- $env := dict -}}
{{- range (include "regulars.parts" . | fromYaml).parts -}}
{{- $ops = append $ops (printf "%s-ops:9600" .name) -}}
{{- $operated = append $operated .component -}}
{{- if and .port (eq .protocol "grpc") -}}
{{- $callees = append $callees (dict "component" .component "port" .port) -}}
{{- $_ := set $env (printf "%s_ADDRESS" (include "regulars.variable" .service)) (printf "dns:///%s-headless:%v" .name .port) -}}
{{- end -}}
{{- end -}}
{{- $job := deepCopy .Values.cronJobDefaults -}}
{{- if .Values.backup.enabled -}}
{{- $job = include "regulars.merge" (list $job (include "regulars.backupJob" . | fromYaml)) | fromYaml -}}
{{- $ops = append $ops (printf "%s-backup-wal-ops:9600" (include "regulars.fullname" .)) -}}
{{- $operated = append $operated "backup-wal" -}}
{{- end -}}
{{- $_ := set $env "OPS_ADDRESSES" (join "," $ops) -}}
{{- $own := dict
    "component" "operator"
    "name" (printf "%s-operator" (include "regulars.fullname" .))
    "image" "cli"
    "bus" true
    "api" true
    "ops" $operated
    "callees" $callees
    "databases" (uniq (concat (include "regulars.allStores" . | fromYaml).names $job.databases))
    "env" (merge $env $job.env)
-}}
{{- with .Values.operator.apiKeySecret -}}
{{- $key := dict "name" "REGULARS_KEY" "valueFrom" (dict "secretKeyRef" (dict "name" . "key" "REGULARS_KEY")) -}}
{{- $_ := set $own "extraEnv" (append $job.extraEnv $key) -}}
{{- end -}}
{{- toYaml (merge $own $job) -}}
{{- end -}}
