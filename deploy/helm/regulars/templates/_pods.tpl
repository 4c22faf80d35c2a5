{{/* What pods of ours have in common. */}}

{{- define "regulars.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "regulars.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Head of every pod's spec: (list root serviceAccountOf). */}}
{{- define "regulars.podHead" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ include "regulars.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where a pod may run: (list scheduling own); own: what a part says besides. */}}
{{- define "regulars.placement" -}}
{{- $scheduling := index . 0 -}}
{{- $own := index . 1 -}}
{{- with merge (deepCopy ($own.nodeSelector | default dict)) ($scheduling.nodeSelector | default dict) }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat ($scheduling.tolerations | default list) ($own.tolerations | default list) }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity | default $scheduling.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.priorityClassName | default $scheduling.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Plain variables as a list of `env:`, in the order of their names. */}}
{{- define "regulars.envList" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* Where the key files are that something mounts: (list root part), as YAML: variable to path. */}}
{{- define "regulars.keyVariables" -}}
{{- $names := dict
    "internalTokenPrivate" "INTERNAL_TOKEN_PRIVATE_KEY_FILE"
    "internalTokenPublic" "INTERNAL_TOKEN_PUBLIC_KEY_FILE"
    "fingerprint" "FINGERPRINT_KEY_FILE"
    "personalData" "PERSONAL_DATA_KEY_FILE"
-}}
{{- $files := (index . 0).Values.keys.files -}}
{{- $paths := dict -}}
{{- range (index . 1).keys -}}
{{- $_ := set $paths (get $names .) (printf "/run/regulars/keys/%s" (get $files .)) -}}
{{- end -}}
{{- toYaml $paths -}}
{{- end -}}

{{/* The volume with the key files that something mounts, and no others: (list root part). */}}
{{- define "regulars.keysVolume" -}}
{{- $root := index . 0 -}}
- name: keys
  secret:
    secretName: {{ include "regulars.keysSecret" $root }}
    defaultMode: 0440
    items:
      {{- range (index . 1).keys }}
      - {key: {{ get $root.Values.keys.files . }}, path: {{ get $root.Values.keys.files . }}}
      {{- end }}
{{- end -}}

{{/* The volume with what is secret about Kafka. */}}
{{- define "regulars.kafkaVolume" -}}
- name: kafka
  projected:
    defaultMode: 0440
    sources:
      {{- include "regulars.kafkaFiles" . | trim | nindent 6 }}
{{- end -}}

{{/* Environment of a part's main container: (list root part). */}}
{{- define "regulars.partEnv" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
{{- $values := $root.Values -}}
{{- $prefix := include "regulars.variable" $part.service -}}
{{- $env := dict
    "OPS_LISTEN" "0.0.0.0:9600"
    "LOG_LEVEL" $values.settings.logLevel
    "DRAIN_SECONDS_BEFORE" ($values.settings.drainSecondsBefore | toString)
-}}
{{- if and $part.port (eq $part.protocol "grpc") -}}
{{- $_ := set $env (printf "%s_LISTEN" $prefix) (printf "0.0.0.0:%v" $part.port) -}}
{{- $_ := set $env "RPC_MAX_CONNECTION_AGE_SECONDS" ($values.settings.rpcMaxConnectionAgeSeconds | toString) -}}
{{- else if $part.port -}}
{{- $_ := set $env (printf "%s_HOST" $prefix) "0.0.0.0" -}}
{{- $_ := set $env (printf "%s_PORT" $prefix) ($part.port | toString) -}}
{{- $_ := set $env (printf "%s_CONNECTION_SECONDS" $prefix) ($values.settings.httpConnectionSeconds | toString) -}}
{{- end -}}
{{- if $part.public -}}
{{- $_ := set $env "DEFAULT_PROGRAMME_ID" $values.settings.defaultProgrammeId -}}
{{- end -}}
{{- if $part.pool -}}
{{- $_ := set $env (printf "%s_POOL_SIZE" $prefix) ($part.pool | toString) -}}
{{- end -}}
{{- with $values.tracing.endpoint -}}
{{- $_ := set $env "OTEL_EXPORTER_OTLP_ENDPOINT" . -}}
{{- with $values.tracing.sampling -}}
{{- $_ := set $env "TRACE_SAMPLING" . -}}
{{- end -}}
{{- end -}}
{{- range $callee := $part.callees -}}
{{- with include "regulars.serving" (list $root $callee) | fromYaml -}}
{{- $_ := set $env (printf "%s_ADDRESS" (include "regulars.variable" $callee)) (printf "dns:///%s-headless:%v" .name .port) -}}
{{- end -}}
{{- end -}}
{{- $env = merge $env (include "regulars.keyVariables" . | fromYaml) -}}
{{- if has "bus" $part.uses -}}
{{- $env = merge $env (include "regulars.busSettings" $root | fromYaml) -}}
{{- end -}}
{{- range $name, $value := $part.env -}}
{{- $_ := set $env $name ($value | toString) -}}
{{- end -}}
{{- include "regulars.envList" $env }}
{{- if and (has "database" $part.uses) $part.store }}
{{ include "regulars.urlEnv" (list $root (ternary "clickhouse" $part.service (eq $part.store "clickhouse"))) }}
{{- end }}
{{- if and (has "bus" $part.uses) (eq $values.bus.kind "postgresql") }}
{{ include "regulars.urlEnv" (list $root "bus") }}
{{- end }}
{{- with $part.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What changes when the chart's own Secret changes a URL that a part reads: (list root part). */}}
{{- define "regulars.connectionsChecksum" -}}
{{- $part := index . 1 -}}
{{- $used := list -}}
{{- $inline := include "regulars.inlineUrls" (index . 0) | fromYaml -}}
{{- if has "database" $part.uses -}}
{{- $used = append $used (get $inline (include "regulars.urlVariable" (ternary "clickhouse" $part.service (eq $part.store "clickhouse")))) -}}
{{- end -}}
{{- if has "bus" $part.uses -}}
{{- $used = append $used (get $inline "BUS_URL") -}}
{{- end -}}
{{- with compact $used -}}
{{- toJson . | sha256sum -}}
{{- end -}}
{{- end -}}

{{/* Liveness, readiness and start of a part, as its probes: (list part). gRPC parts are asked there, all others on the operators' port. */}}
{{- define "regulars.probes" -}}
{{- $grpc := and .port (eq .protocol "grpc") -}}
startupProbe:
  {{- if $grpc }}
  grpc: {port: {{ .port }}, service: startup}
  {{- else }}
  httpGet: {path: /startupz, port: ops}
  {{- end }}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: {{ div (add (int .startupSeconds) 1) 2 }}
livenessProbe:
  {{- if $grpc }}
  grpc: {port: {{ .port }}, service: live}
  {{- else }}
  httpGet: {path: /livez, port: ops}
  {{- end }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  {{- if $grpc }}
  grpc: {port: {{ .port }}, service: ready}
  {{- else }}
  httpGet: {path: /readyz, port: ops}
  {{- end }}
  periodSeconds: 3
  timeoutSeconds: 3
  failureThreshold: 2
{{- end -}}
