{{/* NetworkPolicies: what each pod may be reached by, and what it may reach. */}}

{{/* Peers that are pods of a component of this release: (list root component). */}}
{{- define "regulars.peer" -}}
- podSelector:
    matchLabels:
      {{- include "regulars.selector" . | nindent 6 }}
{{- end -}}

{{- define "regulars.egressDns" -}}
- to:
    {{- toYaml .Values.networkPolicy.dnsTo | nindent 4 }}
  ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
{{- end -}}

{{/* Ways in to the operators' port. */}}
{{- define "regulars.ingressOps" -}}
{{- with .Values.networkPolicy.metricsFrom }}
- from:
    {{- toYaml . | nindent 4 }}
  ports: [{protocol: TCP, port: 9600}]
{{- end }}
{{- if .Values.operator.enabled }}
- from:
    {{- include "regulars.peer" (list . "operator") | nindent 4 }}
  ports: [{protocol: TCP, port: 9600}]
{{- end }}
{{- end -}}

{{/* Way out to something outside of the chart: its entry in values.networkPolicy. */}}
{{- define "regulars.egressOutside" -}}
- ports:
    {{- range .ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Way out to a server: (list root server), server being postgresql, kafka or clickhouse; `inside` and `outside` say whether it is needed. */}}
{{- define "regulars.egressServer" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
{{- $ports := dict "postgresql" 5432 "kafka" 9092 "clickhouse" 8123 -}}
{{- if index . 2 }}
- to:
    {{- include "regulars.peer" (list $root $server) | nindent 4 }}
  ports: [{protocol: TCP, port: {{ get $ports $server }}}]
{{- end }}
{{- if index . 3 }}
{{ include "regulars.egressOutside" (get $root.Values.networkPolicy $server) }}
{{- end }}
{{- end -}}

{{/* Which servers something uses: (list root stores usesBus), as YAML {server: {inside, outside}}; stores: names of databases. */}}
{{- define "regulars.serversUsed" -}}
{{- $root := index . 0 -}}
{{- $stores := index . 1 -}}
{{- $used := dict "postgresql" (dict "inside" false "outside" false) "kafka" (dict "inside" false "outside" false) "clickhouse" (dict "inside" false "outside" false) -}}
{{- if index . 2 -}}
{{- if eq $root.Values.bus.kind "postgresql" -}}
{{- $stores = append $stores "bus" -}}
{{- else -}}
{{- $_ := set (get $used "kafka") (ternary "outside" "inside" (not (empty $root.Values.kafka.brokers))) true -}}
{{- end -}}
{{- end -}}
{{- range $stores -}}
{{- $server := ternary "clickhouse" "postgresql" (eq . "clickhouse") -}}
{{- $_ := set (get $used $server) (ternary "inside" "outside" (eq (include "regulars.urlSource" (list $root .)) "trial")) true -}}
{{- end -}}
{{- toYaml $used -}}
{{- end -}}

{{/* Ways out to the servers that something uses: as above. */}}
{{- define "regulars.egressServers" -}}
{{- $root := index . 0 -}}
{{- range $server, $used := include "regulars.serversUsed" . | fromYaml -}}
{{- include "regulars.egressServer" (list $root $server $used.inside $used.outside) -}}
{{- end -}}
{{- end -}}

{{/* The stores of a part: a list as YAML {names: [...]}. */}}
{{- define "regulars.storesOf" -}}
{{- $names := list -}}
{{- if and (has "database" .uses) .store -}}
{{- $names = append $names (ternary "clickhouse" .service (eq .store "clickhouse")) -}}
{{- end -}}
{{- toYaml (dict "names" $names) -}}
{{- end -}}

{{/* All stores that migrations open. */}}
{{- define "regulars.allStores" -}}
{{- $names := list -}}
{{- range $service, $of := .Values.services -}}
{{- if eq $of.database "clickhouse" -}}
{{- $names = append $names "clickhouse" -}}
{{- else if $of.database -}}
{{- $names = append $names $service -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "names" (uniq $names)) -}}
{{- end -}}

{{- define "regulars.migrationNetwork" -}}
podSelector:
  matchLabels:
    {{- include "regulars.selector" (list . "migrate") | nindent 4 }}
policyTypes: [Ingress, Egress]
egress:
  {{- include "regulars.egressDns" . | nindent 2 }}
  {{- include "regulars.egressServers" (list . (include "regulars.allStores" . | fromYaml).names true) | nindent 2 }}
{{- end -}}
