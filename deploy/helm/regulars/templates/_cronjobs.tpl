{{/* The CronJobs, each with everything that holds for it: `{jobs: [...]}` as YAML. */}}
{{- define "regulars.cronJobs" -}}
{{- $jobs := list -}}
{{- range $name, $own := .Values.cronJobs -}}
{{- $job := include "regulars.merge" (list $.Values.cronJobDefaults $own) | fromYaml -}}
{{- $_ := merge $job (dict "account" "jobs" "component" (printf "job-%s" $name) "name" (printf "%s-%s" (include "regulars.fullname" $) $name)) -}}
{{- $jobs = append $jobs $job -}}
{{- end -}}
{{- with .Values.backup -}}
{{- if .enabled -}}
{{- $common := include "regulars.backupJob" $ | fromYaml -}}
{{- $acts := list
    (dict "name" "backup-base" "schedule" .schedule "args" (list "backup" "run"))
    (dict "name" "backup-verify" "schedule" .verifySchedule "args" (list "backup" "verify"))
    (dict "name" "backup-prune" "schedule" .pruneSchedule "args" (list "backup" "prune" "--keep" (toString .keep)))
-}}
{{- if .facts.enabled -}}
{{- $args := list "backup" "facts" -}}
{{- with .facts.disk -}}
{{- $args = concat $args (list "--disk" .) -}}
{{- end -}}
{{- $acts = append $acts (dict "name" "backup-facts" "schedule" .facts.schedule "args" $args) -}}
{{- end -}}
{{- range $acts -}}
{{- $job := include "regulars.merge" (list $.Values.cronJobDefaults $common) | fromYaml -}}
{{- $_ := set $job "schedule" .schedule -}}
{{- $_ := set $job "args" .args -}}
{{- if ne .name "backup-prune" -}}
{{- $_ := set $job "activeDeadlineSeconds" $.Values.backup.activeDeadlineSeconds -}}
{{- end -}}
{{- if eq .name "backup-facts" -}}
{{- $_ := set $job "databases" (list "clickhouse") -}}
{{- $_ := set $job "bus" true -}}
{{- else if ne .name "backup-base" -}}
{{- $_ := set $job "databases" list -}}
{{- else if $.Values.backup.apiKeySecret -}}
{{- $_ := set $job "api" true -}}
{{- $key := dict "name" "REGULARS_KEY" "valueFrom" (dict "secretKeyRef" (dict "name" $.Values.backup.apiKeySecret "key" "REGULARS_KEY")) -}}
{{- $_ := set $job "extraEnv" (append $job.extraEnv $key) -}}
{{- end -}}
{{- $_ := merge $job (dict "account" "backup" "component" .name "name" (printf "%s-%s" (include "regulars.fullname" $) .name)) -}}
{{- $jobs = append $jobs $job -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "jobs" $jobs) -}}
{{- end -}}

{{/* What every process of the backups gets, as a CronJob has it. */}}
{{- define "regulars.backupJob" -}}
{{- with .Values.backup -}}
{{- $env := dict "BACKUP_TO" .to "AWS_REGION" .s3.region -}}
{{- with .recipients -}}
{{- $_ := set $env "BACKUP_RECIPIENTS" (join "," .) -}}
{{- end -}}
{{- with .s3.endpoint -}}
{{- $_ := set $env "AWS_ENDPOINT_URL" . -}}
{{- end -}}
{{- if .facts.enabled -}}
{{- $_ := set $env "BACKUP_FACTS" "1" -}}
{{- end -}}
{{- $secrets := list -}}
{{- with .s3.existingSecret -}}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" -}}
{{- $secrets = append $secrets (dict "name" . "valueFrom" (dict "secretKeyRef" (dict "name" $.Values.backup.s3.existingSecret "key" .))) -}}
{{- end -}}
{{- end -}}
{{- $egress := list -}}
{{- if hasPrefix "s3://" .to -}}
{{- $egress = append $egress (include "regulars.egressOutside" $.Values.networkPolicy.backup | fromYamlArray | first) -}}
{{- end -}}
{{- $volumes := list -}}
{{- $mounts := list -}}
{{- with .volumeClaim -}}
{{- $volumes = append $volumes (dict "name" "backups" "persistentVolumeClaim" (dict "claimName" .)) -}}
{{- $mounts = append $mounts (dict "name" "backups" "mountPath" "/backups") -}}
{{- end -}}
{{- toYaml (dict "image" "cli" "databases" (list "backup") "env" $env "extraEnv" $secrets "egress" $egress "volumes" $volumes "volumeMounts" $mounts "resources" .resources) -}}
{{- end -}}
{{- end -}}

{{/* Environment of a CronJob's container: (list root job). */}}
{{- define "regulars.cronJobEnv" -}}
{{- $root := index . 0 -}}
{{- $job := index . 1 -}}
{{- $env := include "regulars.keyVariables" . | fromYaml -}}
{{- if $job.bus -}}
{{- $env = merge $env (include "regulars.busSettings" $root | fromYaml) -}}
{{- /* The partitions are this installation's, and not the image's. */}}
{{- $_ := set $env "REGULARS_TOPICS" "/etc/regulars/topics.yaml" -}}
{{- end -}}
{{- if $job.api -}}
{{- with include "regulars.public" $root | fromYaml -}}
{{- $_ := set $env "REGULARS_URL" (printf "http://%s:%v" .name .port) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := $job.env -}}
{{- $_ := set $env $name ($value | toString) -}}
{{- end -}}
{{- include "regulars.envList" $env }}
{{- $databases := $job.databases -}}
{{- if and $job.bus (eq $root.Values.bus.kind "postgresql") -}}
{{- $databases = append $databases "bus" -}}
{{- end }}
{{- range uniq $databases }}
{{ include "regulars.urlEnv" (list $root .) }}
{{- end }}
{{- with $job.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What a CronJob's container mounts: (list root job). */}}
{{- define "regulars.cronJobMounts" -}}
{{- $root := index . 0 -}}
{{- $job := index . 1 -}}
- {name: tmp, mountPath: /tmp}
{{- if $job.keys }}
- {name: keys, mountPath: /run/regulars/keys, readOnly: true}
{{- end }}
{{- if $job.bus }}
- {name: topics, mountPath: /etc/regulars, readOnly: true}
{{- if include "regulars.kafkaFiles" $root | trim }}
- {name: kafka, mountPath: /run/regulars/kafka, readOnly: true}
{{- end }}
{{- end }}
{{- with $job.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The volumes of a CronJob's pod: (list root job). */}}
{{- define "regulars.cronJobVolumes" -}}
{{- $root := index . 0 -}}
{{- $job := index . 1 -}}
- name: tmp
  emptyDir: {sizeLimit: {{ $job.tmpSize }}}
{{- if $job.keys }}
{{ include "regulars.keysVolume" (list $root $job) }}
{{- end }}
{{- if $job.bus }}
- name: topics
  configMap:
    name: {{ include "regulars.fullname" $root }}-topics
{{- if include "regulars.kafkaFiles" $root | trim }}
{{ include "regulars.kafkaVolume" $root }}
{{- end }}
{{- end }}
{{- with $job.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
