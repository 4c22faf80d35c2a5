{{/*
Whether nothing of the release is there yet ("yes"): at the install, and at an upgrade after an install that failed before it made anything.
A cluster that can be asked has a ConfigMap kube-root-ca.crt in every namespace. (`helm template` has none to ask.)
*/}}
{{- define "regulars.isFirst" -}}
{{- $namespace := .Release.Namespace -}}
{{- if .Release.IsInstall -}}yes
{{- else if lookup "v1" "ConfigMap" $namespace "kube-root-ca.crt" -}}
{{- /* Helm makes the ServiceAccounts before it. */}}
{{- if not (lookup "v1" "ConfigMap" $namespace (printf "%s-topics" (include "regulars.fullname" .))) -}}yes{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Name of the Job that makes the demo chain; empty: it is there, or not wanted. With the first release; and again while one was begun and did not end
well, as after an install that was given up: by a name of its own, for a Job is never changed.
*/}}
{{- define "regulars.seedJob" -}}
{{- if .Values.seed.enabled -}}
{{- $name := printf "%s-seed" (include "regulars.fullname" .) -}}
{{- if include "regulars.isFirst" . -}}
{{- $name -}}
{{- else -}}
{{- $unfinished := false -}}
{{- range (lookup "batch/v1" "Job" .Release.Namespace "").items -}}
{{- $labels := .metadata.labels | default dict -}}
{{- if and (eq (get $labels "app.kubernetes.io/component") "seed") (eq (get $labels "app.kubernetes.io/instance") $.Release.Name) -}}
{{- $unfinished = or $unfinished (not (.status | default dict).succeeded) -}}
{{- end -}}
{{- end -}}
{{- if $unfinished -}}{{- printf "%s-%d" $name .Release.Revision -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Whether migrations run as a hook before an upgrade ("yes"), or as a plain Job beside the pods that wait for it: where nothing is there yet, or
what a hook's pod needs is not: its ServiceAccount, a server for trial that answers. For these a hook would wait in vain. (Without a cluster to
ask, as with `helm template --is-upgrade`, it is a hook.)
*/}}
{{- define "regulars.migrationIsHook" -}}
{{- if not (include "regulars.isFirst" .) -}}
{{- $isHook := true -}}
{{- if lookup "v1" "ConfigMap" .Release.Namespace "kube-root-ca.crt" -}}
{{- if .Values.serviceAccount.create -}}
{{- if not (lookup "v1" "ServiceAccount" .Release.Namespace (include "regulars.serviceAccountName" (list . "jobs"))) -}}
{{- $isHook = false -}}
{{- end -}}
{{- end -}}
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

{{- define "regulars.migrationJob" -}}
{{ include "regulars.fullname" . }}-migrate-{{ .Release.Revision }}
{{- end -}}

{{/* What the hook brings along: its own copies, under one name in all revisions. */}}
{{- define "regulars.migrationCopies" -}}
{{ include "regulars.fullname" . }}-migrate-hook
{{- end -}}

{{/*
Metadata of what belongs to the migration: (list root name weight). As hooks they are made anew where one of their name is there, and are not
deleted when they succeeded: Helm 3.19 and later would then take the Job's Secret and NetworkPolicy away also when it gave up waiting for it, and
the Job goes on. So there is one set of copies, which says what the release's own Secret says, until the next upgrade.
*/}}
{{- define "regulars.migrationMetadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "regulars.labels" (list $root "migrate") | nindent 2 }}
{{- if include "regulars.migrationIsHook" $root }}
annotations:
  helm.sh/hook: pre-upgrade
  helm.sh/hook-weight: {{ index . 2 | quote }}
  helm.sh/hook-delete-policy: before-hook-creation
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
