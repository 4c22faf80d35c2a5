{{/* Where a process finds what it connects to. Addresses of yours come first; the servers for trial fill what is left open. */}}

{{/* Names of the PostgreSQL databases that are needed, as YAML {names: [...]}. */}}
{{- define "regulars.databases" -}}
{{- $names := list -}}
{{- range $service, $of := .Values.services -}}
{{- if eq $of.database "postgresql" -}}
{{- $names = append $names $service -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.bus.kind "postgresql" -}}
{{- $names = append $names "bus" -}}
{{- end -}}
{{- toYaml (dict "names" $names) -}}
{{- end -}}

{{/* Variable that holds the URL of a database: a service's name, `bus`, `clickhouse` or `backup` (the server as a whole). */}}
{{- define "regulars.urlVariable" -}}
{{- if eq . "bus" -}}BUS_URL
{{- else if eq . "clickhouse" -}}CLICKHOUSE_URL
{{- else if eq . "backup" -}}BACKUP_DATABASE_URL
{{- else -}}{{ include "regulars.variable" . }}_DATABASE_URL
{{- end -}}
{{- end -}}

{{/* What values say of a database, as YAML: (list root name). */}}
{{- define "regulars.given" -}}
{{- $values := (index . 0).Values -}}
{{- if eq (index . 1) "clickhouse" -}}
{{- toYaml $values.clickhouse -}}
{{- else if eq (index . 1) "backup" -}}
{{- toYaml $values.backup.database -}}
{{- else -}}
{{- toYaml (get $values.postgresql.databases (index . 1) | default (dict "url" "" "existingSecret" "" "existingSecretKey" "" "maxConnections" 0)) -}}
{{- end -}}
{{- end -}}

{{/* Where the URL of a database comes from, one of existing, inline, trial, nowhere: (list root name). */}}
{{- define "regulars.urlSource" -}}
{{- $root := index . 0 -}}
{{- $given := include "regulars.given" . | fromYaml -}}
{{- $server := ternary $root.Values.trial.clickhouse $root.Values.trial.postgresql (eq (index . 1) "clickhouse") -}}
{{- if $given.existingSecret -}}existing
{{- else if $given.url -}}inline
{{- else if $server.enabled -}}trial
{{- else -}}nowhere
{{- end -}}
{{- end -}}

{{/* URLs given in values, which the chart keeps in a Secret, as YAML: variable to URL. */}}
{{- define "regulars.inlineUrls" -}}
{{- $urls := dict -}}
{{- $names := append (include "regulars.databases" . | fromYaml).names "clickhouse" -}}
{{- range ternary (append $names "backup") $names .Values.backup.enabled -}}
{{- if eq (include "regulars.urlSource" (list $ .)) "inline" -}}
{{- $_ := set $urls (include "regulars.urlVariable" .) (include "regulars.given" (list $ .) | fromYaml).url -}}
{{- end -}}
{{- end -}}
{{- toYaml $urls -}}
{{- end -}}

{{/* The variable with the URL of a database: (list root name), with a third entry where the chart's Secrets are not the usual ones: one that holds all. */}}
{{- define "regulars.urlEnv" -}}
{{- $root := index . 0 -}}
{{- $variable := include "regulars.urlVariable" (index . 1) -}}
{{- $given := include "regulars.given" . | fromYaml -}}
{{- $source := include "regulars.urlSource" . -}}
- name: {{ $variable }}
  valueFrom:
    secretKeyRef:
      {{- if eq $source "existing" }}
      name: {{ $given.existingSecret }}
      key: {{ $given.existingSecretKey | default $variable }}
      {{- else }}
      name: {{ if gt (len .) 2 }}{{ index . 2 }}{{ else }}{{ include "regulars.fullname" $root }}-{{ ternary "connections" "trial" (eq $source "inline") }}{{ end }}
      key: {{ $variable }}
      {{- end }}
{{- end -}}

{{- define "regulars.kafkaBrokers" -}}
{{- if .Values.kafka.brokers -}}
{{- join "," .Values.kafka.brokers -}}
{{- else if .Values.trial.kafka.enabled -}}
{{ include "regulars.fullname" . }}-kafka:9092
{{- end -}}
{{- end -}}

{{/* Settings of the bus that are no secret, as YAML: variable to text. */}}
{{- define "regulars.busSettings" -}}
{{- $settings := dict -}}
{{- if eq .Values.bus.kind "kafka" -}}
{{- $kafka := .Values.kafka -}}
{{- $_ := set $settings "BUS_URL" (printf "kafka://%s" (include "regulars.kafkaBrokers" .)) -}}
{{- if $kafka.brokers -}}
{{- $_ := set $settings "KAFKA_SECURITY_PROTOCOL" $kafka.securityProtocol -}}
{{- if hasPrefix "SASL" $kafka.securityProtocol -}}
{{- $_ := set $settings "KAFKA_SASL_MECHANISM" $kafka.sasl.mechanism -}}
{{- $_ := set $settings "KAFKA_SASL_USERNAME" $kafka.sasl.username -}}
{{- $_ := set $settings "KAFKA_SASL_PASSWORD_FILE" "/run/regulars/kafka/password" -}}
{{- end -}}
{{- if hasSuffix "SSL" $kafka.securityProtocol -}}
{{- if $kafka.tls.caSecret -}}
{{- $_ := set $settings "KAFKA_SSL_CA_FILE" "/run/regulars/kafka/ca.crt" -}}
{{- end -}}
{{- if $kafka.tls.clientSecret -}}
{{- $_ := set $settings "KAFKA_SSL_CERTIFICATE_FILE" "/run/regulars/kafka/client.crt" -}}
{{- $_ := set $settings "KAFKA_SSL_KEY_FILE" "/run/regulars/kafka/client.key" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}

{{/* Sources of the volume `kafka`; empty: there is nothing secret about Kafka. */}}
{{- define "regulars.kafkaFiles" -}}
{{- $kafka := .Values.kafka -}}
{{- if and (eq .Values.bus.kind "kafka") $kafka.brokers -}}
{{- if hasPrefix "SASL" $kafka.securityProtocol }}
- secret: {name: {{ $kafka.sasl.existingSecret }}, items: [{key: {{ $kafka.sasl.passwordKey }}, path: password}]}
{{- end }}
{{- if and (hasSuffix "SSL" $kafka.securityProtocol) $kafka.tls.caSecret }}
- secret: {name: {{ $kafka.tls.caSecret }}, items: [{key: {{ $kafka.tls.caKey }}, path: ca.crt}]}
{{- end }}
{{- if and (hasSuffix "SSL" $kafka.securityProtocol) $kafka.tls.clientSecret }}
- secret:
    name: {{ $kafka.tls.clientSecret }}
    items: [{key: {{ $kafka.tls.certificateKey }}, path: client.crt}, {key: {{ $kafka.tls.privateKeyKey }}, path: client.key}]
{{- end }}
{{- end -}}
{{- end -}}

{{- define "regulars.keysSecret" -}}
{{- .Values.keys.existingSecret | default (printf "%s-keys" (include "regulars.fullname" .)) -}}
{{- end -}}
