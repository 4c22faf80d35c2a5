{{/* Databases of the PostgreSQL for trial, as YAML {names: [...]}: one for each service that has one, and that of the bus, whatever the bus is. */}}
{{- define "regulars.trialDatabases" -}}
{{- toYaml (dict "names" (uniq (append (include "regulars.databases" . | fromYaml).names "bus"))) -}}
{{- end -}}

{{/*
Passwords and URLs of the servers for trial, as YAML: key to text; empty where there are none. What the cluster has is kept. What it has not is
drawn once in a render, and noted, so that the hook that migrates gives a new database the very password that the release's Secret gets after it.
*/}}
{{- define "regulars.trialData" -}}
{{- $trial := .Values.trial -}}
{{- if not (hasKey $trial "drawn") -}}
{{- $fullname := include "regulars.fullname" . -}}
{{- $kept := (lookup "v1" "Secret" .Release.Namespace (printf "%s-trial" $fullname) | default dict).data | default dict -}}
{{- $data := dict -}}
{{- if $trial.postgresql.enabled -}}
{{- $_ := set $data "postgresql-password" (get $kept "postgresql-password" | b64dec | default (randAlphaNum 32)) -}}
{{- $_ := set $data "backup-password" (get $kept "backup-password" | b64dec | default (randAlphaNum 32)) -}}
{{- $_ := set $data "BACKUP_DATABASE_URL" (printf "postgresql://backup:%s@%s-postgresql:5432/postgres" (get $data "backup-password") $fullname) -}}
{{- range (include "regulars.trialDatabases" . | fromYaml).names -}}
{{- $password := get $kept (printf "%s-password" .) | b64dec | default (randAlphaNum 32) -}}
{{- $_ := set $data (printf "%s-password" .) $password -}}
{{- $_ := set $data (include "regulars.urlVariable" .) (printf "postgresql://%s:%s@%s-postgresql:5432/%s" . $password $fullname .) -}}
{{- end -}}
{{- end -}}
{{- if $trial.clickhouse.enabled -}}
{{- $password := get $kept "clickhouse-password" | b64dec | default (randAlphaNum 32) -}}
{{- $_ := set $data "clickhouse-password" $password -}}
{{- $_ := set $data "CLICKHOUSE_URL" (printf "http://regulars:%s@%s-clickhouse:8123/reporting" $password $fullname) -}}
{{- end -}}
{{- $_ := set $trial "drawn" $data -}}
{{- end -}}
{{- toYaml $trial.drawn -}}
{{- end -}}

{{/* The script that makes roles and databases: run by the image when the volume is new, and by every migration. */}}
{{- define "regulars.trialScript" -}}
administer() {
  test -s "/run/regulars/trial/$1-password"
  # The password is read by psql itself: its command line is for everybody to see.
  { echo '\set password `cat /run/regulars/trial/'"$1"'-password`' && cat; } |
    psql --no-psqlrc --username postgres --dbname postgres -v ON_ERROR_STOP=1 -v name="$1"
}
for name in {{ join " " (include "regulars.trialDatabases" . | fromYaml).names }}; do
  administer "$name" <<'SQL'
SELECT format('CREATE ROLE %I LOGIN', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name') WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
SQL
done
administer backup <<'SQL'
SELECT 'CREATE ROLE backup LOGIN REPLICATION' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backup') \gexec
ALTER ROLE backup PASSWORD :'password';
GRANT pg_monitor TO backup;
SQL
# The image lets nobody replicate from elsewhere.
if [ -f "${PGDATA:-}/pg_hba.conf" ]; then
  echo 'host replication backup all scram-sha-256' >>"$PGDATA/pg_hba.conf"
fi
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
