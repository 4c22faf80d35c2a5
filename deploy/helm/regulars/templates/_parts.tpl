{{/* The parts of all services, each with everything that holds for it: `{parts: [...]}` as YAML. */}}

{{/* A map with another over it, key by key: (list base over). Unlike mergeOverwrite, `false`, 0 and "" count as given. */}}
{{- define "regulars.merge" -}}
{{- $base := index . 0 -}}
{{- $merged := deepCopy $base -}}
{{- range $key, $value := index . 1 -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $base $key)) -}}
{{- $_ := set $merged $key (include "regulars.merge" (list (get $base $key) $value) | fromYaml) -}}
{{- else -}}
{{- $_ := set $merged $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $merged -}}
{{- end -}}

{{- define "regulars.parts" -}}
{{- $parts := list -}}
{{- range $service, $of := .Values.services -}}
{{- range $name, $own := $of.parts -}}
{{- $part := include "regulars.merge" (list $.Values.partDefaults $own) | fromYaml -}}
{{- $component := printf "%s-%s" $service $name -}}
{{- $_ := merge $part (dict
    "service" $service
    "part" $name
    "component" $component
    "name" (printf "%s-%s" (include "regulars.fullname" $) $component)
    "image" $of.image
    "store" $of.database
    "callees" (ternary (keys (get $.Values.calls $service | default dict) | sortAlpha) list (has "calls" $part.uses))
    "portName" $part.protocol
) -}}
{{- $parts = append $parts $part -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "parts" $parts) -}}
{{- end -}}

{{/* The part that others call in a service: (list root service), as YAML. */}}
{{- define "regulars.serving" -}}
{{- $service := index . 1 -}}
{{- range (include "regulars.parts" (index . 0) | fromYaml).parts -}}
{{- if and (eq .service $service) .port -}}
{{- toYaml . -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The public part, as YAML. */}}
{{- define "regulars.public" -}}
{{- range (include "regulars.parts" . | fromYaml).parts -}}
{{- if .public -}}
{{- toYaml . -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Most pods of a part outside of a rollout. */}}
{{- define "regulars.mostPods" -}}
{{- if .keda.enabled -}}{{ .keda.maxReplicas }}
{{- else if .autoscaling.enabled -}}{{ .autoscaling.maxReplicas }}
{{- else -}}{{ .replicas }}
{{- end -}}
{{- end -}}

{{/* Most pods of a part while a new version comes. */}}
{{- define "regulars.mostPodsInRollout" -}}
{{- $most := include "regulars.mostPods" . | int -}}
{{- $surge := .rollout.maxSurge | toString -}}
{{- if hasSuffix "%" $surge -}}
{{- add $most (divf (mulf $most (trimSuffix "%" $surge | float64)) 100.0 | ceil | int) -}}
{{- else -}}
{{- add $most ($surge | int) -}}
{{- end -}}
{{- end -}}

{{/* Topics that a service consumes, and whether it has any to do with the bus: (list root service), as YAML {consumed, usesBus, partitions}. */}}
{{- define "regulars.events" -}}
{{- $service := index . 1 -}}
{{- $consumed := list -}}
{{- $partitions := 0 -}}
{{- $uses := false -}}
{{- range $topic, $of := (index . 0).Values.topics -}}
{{- if has $service $of.consumers -}}
{{- $consumed = append $consumed $topic -}}
{{- $partitions = add $partitions (int $of.partitions) -}}
{{- end -}}
{{- if or (has $service $of.consumers) (has $service $of.producers) -}}
{{- $uses = true -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "consumed" $consumed "usesBus" $uses "partitions" $partitions) -}}
{{- end -}}

{{/* Every topic that Kafka has: those of the registry, and one of dead letters for each consumer; YAML {name: {partitions, retentionDays}}. */}}
{{- define "regulars.allTopics" -}}
{{- $all := dict -}}
{{- range $topic, $of := .Values.topics -}}
{{- $_ := set $all $topic (dict "partitions" $of.partitions "retentionDays" $of.retention_days) -}}
{{- range $of.consumers -}}
{{- $_ := set $all (printf "dead-letters.%s.v1" .) (dict "partitions" 1 "retentionDays" 3650) -}}
{{- end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}
