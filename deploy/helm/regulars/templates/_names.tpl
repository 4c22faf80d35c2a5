{{/* Names and labels. */}}

{{- define "regulars.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* What the names of resources begin with; the longest that follows it leaves room in 63 characters. */}}
{{- define "regulars.fullname" -}}
{{- $name := include "regulars.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "regulars.version" -}}
{{- .Values.image.tag | default .Chart.AppVersion -}}
{{- end -}}

{{/* Image of ours: (list root name). */}}
{{- define "regulars.image" -}}
{{- $root := index . 0 -}}
{{- $image := $root.Values.image -}}
{{- compact (list $image.registry $image.repository (index . 1)) | join "/" -}}
{{- with get ($image.digests | default dict) (index . 1) -}}@{{ . }}{{- else -}}:{{ include "regulars.version" $root }}{{- end -}}
{{- end -}}

{{/* What selects the pods of a component, for ever: (list root component). */}}
{{- define "regulars.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "regulars.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of pods of a component: (list root component). The chart's version is not one, so that it alone begins no pod anew. */}}
{{- define "regulars.podLabels" -}}
{{ include "regulars.selector" . }}
app.kubernetes.io/part-of: regulars
app.kubernetes.io/version: {{ include "regulars.version" (index . 0) | quote }}
{{- end -}}

{{/* Labels of resources of a component: (list root component). */}}
{{- define "regulars.labels" -}}
{{ include "regulars.podLabels" . }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* ServiceAccount of a service, of `jobs` or of `backup`: (list root service). */}}
{{- define "regulars.serviceAccountName" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.serviceAccount.create -}}
{{ include "regulars.fullname" $root }}-{{ index . 1 }}
{{- else -}}
{{ $root.Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* Prefix of a service's environment variables. */}}
{{- define "regulars.variable" -}}
{{- . | upper | replace "-" "_" -}}
{{- end -}}

{{/* Names under which clients come from outside, as YAML {hosts: [...]}. */}}
{{- define "regulars.hosts" -}}
{{- $hosts := list -}}
{{- if .Values.ingress.enabled -}}
{{- $hosts = append $hosts .Values.ingress.host -}}
{{- end -}}
{{- if .Values.httpRoute.enabled -}}
{{- $hosts = concat $hosts .Values.httpRoute.hostnames -}}
{{- end -}}
{{- toYaml (dict "hosts" (compact (uniq $hosts))) -}}
{{- end -}}
