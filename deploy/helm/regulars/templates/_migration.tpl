{{/*
Whether migrations run as a hook before an upgrade ("yes"), or as a plain Job beside the pods that wait for it: at the install, and where
a server for trial is not there yet or does not answer, for which a hook would wait in vain. (Without a cluster to ask, as with
`helm template --is-upgrade`, it is a hook.)
*/}}
{{- define "regulars.migrationIsHook" -}}
{{- if .Release.IsUpgrade -}}
{{- $isHook := true -}}
{{- if lookup "v1" "ConfigMap" .Release.Namespace (printf "%s-topics" (include "regulars.fullname" .)) -}}
{{- range $name, $server := pick .Values.trial "postgresql" "kafka" "clickhouse" -}}
{{- if $server.enabled -}}
{{- $there := lookup "apps/v1" "StatefulSet" $.Release.Namespace (printf "%s-%s" (include "regulars.fullname" $) $name) | default dict -}}
{{- if not ($there.status | default dict).readyReplicas -}}
{{- $isHook = false -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $isHook -}}yes{{- end -}}
{{- end -}}
{{- end -}}

{{/* Metadata of what belongs to the migration: (list root suffix weight deletePolicy). */}}
{{- define "regulars.migrationMetadata" -}}
{{- $root := index . 0 -}}
name: {{ include "regulars.fullname" $root }}-migrate-{{ $root.Release.Revision }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "regulars.labels" (list $root "migrate") | nindent 2 }}
{{- if include "regulars.migrationIsHook" $root }}
annotations:
  helm.sh/hook: pre-upgrade
  helm.sh/hook-weight: {{ index . 1 | quote }}
  helm.sh/hook-delete-policy: {{ index . 2 }}
{{- with lookup "v1" "ConfigMap" $root.Release.Namespace (printf "%s-topics" (include "regulars.fullname" $root)) }}
# Helm forgets its hooks: so that they go when the release does, they belong to something of it.
ownerReferences:
  - {apiVersion: v1, kind: ConfigMap, name: {{ .metadata.name }}, uid: {{ .metadata.uid }}}
{{- end }}
{{- end }}
{{- end -}}

{{/* A container that migrates: (list root service-or-bus image name command). */}}
{{- define "regulars.migrationContainer" -}}
{{- $root := index . 0 -}}
- name: {{ index . 1 }}
  image: {{ include "regulars.image" (list $root (index . 2)) }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  command:
    {{- toYaml (index . 3) | nindent 4 }}
  env:
    {{- index . 4 | nindent 4 }}
  securityContext:
    {{- include "regulars.containerSecurity" $root | nindent 4 }}
  resources:
    {{- toYaml $root.Values.migrations.resources | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
{{- end -}}
