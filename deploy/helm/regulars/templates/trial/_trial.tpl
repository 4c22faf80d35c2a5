{{/* Databases of the PostgreSQL for trial, as YAML {names: [...]}: one for each service that has one, and that of the bus, whatever the bus is. */}}
{{- define "regulars.trialDatabases" -}}
{{- toYaml (dict "names" (uniq (append (include "regulars.databases" . | fromYaml).names "bus"))) -}}
{{- end -}}

{{/* A claim of a server for trial: (list root server component). */}}
{{- define "regulars.trialClaim" -}}
{{- $root := index . 0 -}}
persistentVolumeClaimRetentionPolicy:
  whenDeleted: {{ $root.Values.trial.persistentVolumeClaims }}
  whenScaled: Retain
volumeClaimTemplates:
  - metadata:
      name: data
      labels:
        {{- include "regulars.selector" (list $root (index . 2)) | nindent 8 }}
    spec:
      accessModes: [ReadWriteOnce]
      {{- with (index . 1).storage.className }}
      storageClassName: {{ . }}
      {{- end }}
      resources:
        requests:
          storage: {{ (index . 1).storage.size }}
{{- end -}}

{{/* Head of a server for trial: (list root server component). */}}
{{- define "regulars.trialHead" -}}
{{- $root := index . 0 -}}
{{- $component := index . 2 -}}
metadata:
  name: {{ include "regulars.fullname" $root }}-{{ $component }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "regulars.labels" (list $root $component) | nindent 4 }}
{{- end -}}

{{/* Its Service: (list root component port portName). */}}
{{- define "regulars.trialService" -}}
{{- $root := index . 0 -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "regulars.fullname" $root }}-{{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "regulars.labels" (list $root (index . 1)) | nindent 4 }}
spec:
  selector:
    {{- include "regulars.selector" (list $root (index . 1)) | nindent 4 }}
  ports:
    - {name: {{ index . 3 }}, port: {{ index . 2 }}, targetPort: {{ index . 3 }}}
{{- end -}}

{{/* Security of its pods: the user of its image. */}}
{{- define "regulars.trialPodSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}
