{{/* The CronJobs, each with everything that holds for it: `{jobs: [...]}` as YAML. */}}
{{- define "regulars.cronJobs" -}}
{{- $jobs := list -}}
{{- range $name, $own := .Values.cronJobs -}}
{{- $job := include "regulars.merge" (list $.Values.cronJobDefaults $own) | fromYaml -}}
{{- $_ := merge $job (dict "component" (printf "job-%s" $name) "name" (printf "%s-%s" (include "regulars.fullname" $) $name)) -}}
{{- $jobs = append $jobs $job -}}
{{- end -}}
{{- toYaml (dict "jobs" $jobs) -}}
{{- end -}}

{{/* Environment of a CronJob's container: (list root job). */}}
{{- define "regulars.cronJobEnv" -}}
{{- $root := index . 0 -}}
{{- $job := index . 1 -}}
{{- $env := include "regulars.keyVariables" . | fromYaml -}}
{{- if $job.bus -}}
{{- $env = merge $env (include "regulars.busSettings" $root | fromYaml) -}}
{{- end -}}
{{- if $job.api -}}
{{- with include "regulars.public" $root | fromYaml -}}
{{- $_ := set $env "GATEWAY_URL" (printf "http://%s:%v" .name .port) -}}
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
