{{/*
What the templates share. Four of them are for other charts too (README.md shows how):
relay.container, relay.volumes, relay.podAnnotations, relay.podLabels.
They are used with this chart's own scope: {{ include "relay.container" .Subcharts.relay }}
*/}}

{{- define "relay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 53 characters: the longest suffix we append ("-metrics") must still fit into a DNS label. */}}
{{- define "relay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" -}}
{{- else if contains (include "relay.name" .) .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "relay.name" .) | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "relay.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "relay.selectorLabels" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "relay.selectorLabels" -}}
app.kubernetes.io/name: {{ include "relay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The label that says "a relay of this release runs in this pod", in whoever's pod it is. */}}
{{- define "relay.podLabels" -}}
run-relay/instance: {{ include "relay.fullname" . }}
{{- end -}}

{{/* A changed configuration rolls the pods. */}}
{{- define "relay.podAnnotations" -}}
checksum/config: {{ include "relay.config" . | sha256sum }}
checksum/secret: {{ toJson .Values.secrets | sha256sum }}
{{- end -}}

{{- define "relay.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "relay.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "relay.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "relay.secretName" -}}
{{- default (include "relay.fullname" .) .Values.secrets.existing.name -}}
{{- end -}}

{{/* "yes" where a Redis address is given, "" where the embedded server is used. */}}
{{- define "relay.hasRedis" -}}
{{- if or .Values.secrets.redisUrl .Values.secrets.existing.redisUrlKey -}}yes{{- end -}}
{{- end -}}

{{- define "relay.hasTokenSecret" -}}
{{- if or .Values.secrets.tokenSecret .Values.secrets.existing.tokenSecretKey -}}yes{{- end -}}
{{- end -}}

{{/* "yes" where the chart makes a Secret of its own. */}}
{{- define "relay.ownSecret" -}}
{{- with .Values.secrets -}}
{{- if and (not .existing.name) (or .redisUrl .tokenSecret .upstreamTokens) -}}yes{{- end -}}
{{- end -}}
{{- end -}}

{{/* Upstream names match [a-z0-9-], so this maps no two of them to one variable. Not RELAY_*: relay refuses those that
are no configuration keys. */}}
{{- define "relay.upstreamTokenVariable" -}}
UPSTREAM_TOKEN_{{ . | upper | replace "-" "_" }}
{{- end -}}

{{/* The upstreams whose tokens the chart hands over: a JSON object, upstream name -> key in the Secret. */}}
{{- define "relay.upstreamTokenKeys" -}}
{{- if .Values.secrets.existing.name -}}
{{- .Values.secrets.existing.upstreamTokenKeys | toJson -}}
{{- else -}}
{{- $keys := dict -}}
{{- range $name := keys .Values.secrets.upstreamTokens -}}
{{- $_ := set $keys $name (printf "upstream-token-%s" $name) -}}
{{- end -}}
{{- $keys | toJson -}}
{{- end -}}
{{- end -}}

{{/* Without keys relay accepts nothing but loopback, for the admin listener too: then it is probed from inside. */}}
{{- define "relay.adminHost" -}}
{{- if and (eq .Values.mode "sidecar") (eq .Values.config.auth.mode "none") -}}127.0.0.1{{- else -}}0.0.0.0{{- end -}}
{{- end -}}

{{- define "relay.allowedHosts" -}}
{{- $name := include "relay.fullname" . -}}
{{- $hosts := list -}}
{{- if eq .Values.mode "deployment" -}}
{{- $qualified := printf "%s.%s" $name .Release.Namespace -}}
{{- $hosts = list $name $qualified (printf "%s.svc" $qualified) (printf "%s.svc.cluster.local" $qualified) -}}
{{- end -}}
{{- concat $hosts .Values.config.server.allowed_hosts | uniq | toJson -}}
{{- end -}}

{{/* relay.yaml. Begins with every check, so that nothing can be rendered from values that contradict each other. */}}
{{- define "relay.config" -}}
{{- include "relay.check" . -}}
{{- $config := deepCopy .Values.config -}}
{{- $host := ternary "0.0.0.0" "127.0.0.1" (eq .Values.mode "deployment") -}}
{{- $hosts := include "relay.allowedHosts" . | fromJsonArray -}}
{{- $_ := set $config "server" (mergeOverwrite $config.server (dict "host" $host "admin_host" (include "relay.adminHost" .) "allowed_hosts" $hosts)) -}}
{{- if not (include "relay.hasRedis" .) -}}
{{- $_ := set $config "embedded" (dict "data_dir" "/var/lib/relay/embedded") -}}
{{- end -}}
{{- $tokens := include "relay.upstreamTokenKeys" . | fromJson -}}
{{- range $config.upstreams -}}
{{- if hasKey $tokens .name -}}
{{- $_ := set . "token" (printf "env:%s" (include "relay.upstreamTokenVariable" .name)) -}}
{{- end -}}
{{- end -}}
{{- range $section := list "redis" "retention" "ingest" "fanout" "delivery" "limits" "log" -}}
{{- if not (index $config $section) -}}{{- $_ := unset $config $section -}}{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "relay.env" -}}
{{- $secret := include "relay.secretName" . -}}
{{- $existing := .Values.secrets.existing }}
# As in relay.yaml; said again because the image sets this variable, and variables win over the file.
- {name: RELAY_SERVER__ADMIN_HOST, value: {{ include "relay.adminHost" . }}}
{{- if include "relay.hasRedis" . }}
- name: RELAY_REDIS__URL
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ default "redis-url" $existing.redisUrlKey }}}}
{{- end }}
{{- if include "relay.hasTokenSecret" . }}
- name: RELAY_AUTH__TOKEN_SECRET
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ default "token-secret" $existing.tokenSecretKey }}}}
{{- end }}
{{- range $name, $key := include "relay.upstreamTokenKeys" . | fromJson }}
- name: {{ include "relay.upstreamTokenVariable" $name }}
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ $key }}}}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Called with a list: the scope, the path, the probe's values. */}}
{{- define "relay.probe" -}}
{{- $scope := index . 0 -}}
{{- $path := index . 1 -}}
{{- $settings := index . 2 -}}
{{- if eq (include "relay.adminHost" $scope) "127.0.0.1" -}}
exec:
  command:
    - python
    - -c
    - import http.client as h, sys; c = h.HTTPConnection("127.0.0.1", {{ $scope.Values.config.server.admin_port | int }}); c.request("GET", "{{ $path }}"); sys.exit(c.getresponse().status != 200)
{{- else -}}
httpGet: {path: {{ $path }}, port: relay-admin}
{{- end }}
periodSeconds: {{ $settings.periodSeconds | int }}
timeoutSeconds: {{ $settings.timeoutSeconds | int }}
failureThreshold: {{ $settings.failureThreshold | int }}
{{- end -}}

{{/*
relay's container, as one mapping. In mode sidecar it is a native sidecar: an entry of initContainers that keeps running,
starts before the pod's own containers and is stopped after them. Goes with relay.volumes.
*/}}
{{- define "relay.container" -}}
name: relay
image: {{ include "relay.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- if eq .Values.mode "sidecar" }}
restartPolicy: Always
{{- end }}
args: [serve, --config, /etc/relay/relay.yaml]
ports:
  - {name: relay-http, containerPort: {{ .Values.config.server.port | int }}, protocol: TCP}
  - {name: relay-admin, containerPort: {{ .Values.config.server.admin_port | int }}, protocol: TCP}
{{- with include "relay.env" . | trim }}
env:
  {{- . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.probes.startup }}
{{- if .enabled }}
startupProbe:
  {{- include "relay.probe" (list $ "/healthz" .) | nindent 2 }}
{{- end }}
{{- end }}
{{- with .Values.probes.liveness }}
{{- if .enabled }}
livenessProbe:
  {{- include "relay.probe" (list $ "/healthz" .) | nindent 2 }}
{{- end }}
{{- end }}
{{- with .Values.probes.readiness }}
{{- if .enabled }}
readinessProbe:
  {{- include "relay.probe" (list $ "/readyz" .) | nindent 2 }}
{{- end }}
{{- end }}
{{- if and (eq .Values.mode "deployment") (gt (int .Values.preStopSleepSeconds) 0) }}
lifecycle:
  preStop:
    # Not the "sleep" action: it is off by default in 1.29, which would leave an empty hook. And there is no need of a shell.
    exec: {command: [python, -c, "import time; time.sleep({{ int .Values.preStopSleepSeconds }})"]}
{{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  - {name: relay-config, mountPath: /etc/relay, readOnly: true}
  - {name: relay-tmp, mountPath: /tmp}
  {{- if not (include "relay.hasRedis" .) }}
  - {name: relay-data, mountPath: /var/lib/relay}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The volumes of relay.container, as list items. */}}
{{- define "relay.volumes" -}}
- name: relay-config
  configMap: {name: {{ include "relay.fullname" . }}}
- name: relay-tmp
  emptyDir: {sizeLimit: 64Mi}
{{- if not (include "relay.hasRedis" .) }}
- name: relay-data
  {{- if and (eq .Values.mode "deployment") .Values.persistence.enabled }}
  persistentVolumeClaim: {claimName: {{ default (include "relay.fullname" .) .Values.persistence.existingClaim }}}
  {{- else if .Values.persistence.emptyDirSizeLimit }}
  emptyDir: {sizeLimit: {{ .Values.persistence.emptyDirSizeLimit }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Seconds; fractions count whole. */}}
{{- define "relay.shutdownSeconds" -}}
{{- $preStop := ternary (int .Values.preStopSleepSeconds) 0 (eq .Values.mode "deployment") -}}
{{- add $preStop (ceil .Values.config.drain.window_s | int) (ceil .Values.config.drain.close_s | int) -}}
{{- end -}}

{{- define "relay.terminationGracePeriodSeconds" -}}
{{- $least := include "relay.shutdownSeconds" . | int -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- add $least (ternary 10 30 (eq .Values.mode "deployment")) -}}
{{- else -}}
{{- int .Values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}
