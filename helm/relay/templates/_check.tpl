{{/*
What values.schema.json cannot say: values that contradict each other. Every message names the values to change.
*/}}
{{- define "relay.check" -}}
{{- include "relay.checkSecrets" . -}}
{{- include "relay.checkAuth" . -}}
{{- include "relay.checkLoopback" . -}}
{{- include "relay.checkStore" . -}}
{{- include "relay.checkShutdown" . -}}
{{- end -}}

{{- define "relay.checkSecrets" -}}
{{- $secrets := .Values.secrets -}}
{{- $existing := $secrets.existing -}}
{{- if $existing.name -}}
{{- if or $secrets.redisUrl $secrets.tokenSecret $secrets.upstreamTokens -}}
{{- fail "secrets.existing.name is set, so secrets.redisUrl, secrets.tokenSecret and secrets.upstreamTokens must be empty: put them into that Secret and name its keys under secrets.existing" -}}
{{- end -}}
{{- else if or $existing.redisUrlKey $existing.tokenSecretKey $existing.upstreamTokenKeys -}}
{{- fail "secrets.existing names keys but no Secret: set secrets.existing.name" -}}
{{- end -}}
{{- $upstreams := dict -}}
{{- range .Values.config.upstreams -}}
{{- if hasKey $upstreams .name -}}
{{- fail (printf "config.upstreams names %q twice" .name) -}}
{{- end -}}
{{- $_ := set $upstreams .name . -}}
{{- end -}}
{{- range $name := include "relay.upstreamTokenKeys" . | fromJson | keys | sortAlpha -}}
{{- if not (hasKey $upstreams $name) -}}
{{- fail (printf "a token is given for upstream %q, which is not in config.upstreams (there: %s)" $name (keys $upstreams | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if hasKey (get $upstreams $name) "token" -}}
{{- fail (printf "upstream %q has its token twice: in config.upstreams and under secrets. Remove one" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "relay.checkAuth" -}}
{{- $auth := .Values.config.auth -}}
{{- if and (eq .Values.mode "deployment") (ne $auth.mode "api_keys") -}}
{{- fail (printf "config.auth.mode is %q, but in mode deployment relay listens on all addresses and needs api_keys (none is for mode sidecar, where it listens on loopback)" $auth.mode) -}}
{{- end -}}
{{- if and (eq $auth.mode "api_keys") (not $auth.keys) -}}
{{- fail "config.auth.keys is empty: nobody could come in. Make a key with `relay token key NAME` and put its hash here" -}}
{{- end -}}
{{- if and (eq $auth.mode "api_keys") (include "relay.hasRedis" .) (not (include "relay.hasTokenSecret" .)) -}}
{{- fail "secrets.tokenSecret (or secrets.existing.tokenSecretKey) is missing: with Redis and api_keys every process must sign viewer tokens with the same secret" -}}
{{- end -}}
{{- end -}}

{{- define "relay.checkLoopback" -}}
{{- if and (eq .Values.config.auth.mode "none") .Values.metrics.serviceMonitor.enabled -}}
{{- fail "metrics.serviceMonitor.enabled needs the admin listener on the pod's address, and relay opens it there only with config.auth.mode api_keys" -}}
{{- end -}}
{{- if and (eq .Values.config.auth.mode "none") (has "*" .Values.config.server.allowed_hosts) -}}
{{- fail "config.server.allowed_hosts has * and config.auth.mode is none: that opens relay to every web page. Name the hosts, or use api_keys" -}}
{{- end -}}
{{- end -}}

{{- define "relay.checkStore" -}}
{{- if and (eq .Values.mode "deployment") (not (include "relay.hasRedis" .)) (gt (int .Values.replicas) 1) -}}
{{- fail (printf "replicas is %d, but without Redis each pod would keep a log of its own: set replicas to 1, or give secrets.redisUrl (or secrets.existing.redisUrlKey)" (int .Values.replicas)) -}}
{{- end -}}
{{- if and .Values.persistence.enabled (eq .Values.mode "sidecar") -}}
{{- fail "persistence.enabled is for mode deployment: pods with a sidecar cannot share one claim. Set it to false, or give secrets.redisUrl" -}}
{{- end -}}
{{- if and .Values.persistence.enabled (include "relay.hasRedis" .) -}}
{{- fail "persistence.enabled has no use with a Redis address: the log is kept there. Set it to false" -}}
{{- end -}}
{{- end -}}

{{- define "relay.checkShutdown" -}}
{{- $least := include "relay.shutdownSeconds" . | int -}}
{{- $given := include "relay.terminationGracePeriodSeconds" . | int -}}
{{- if le $given $least -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, but preStopSleepSeconds, config.drain.window_s and config.drain.close_s take %d: it must be more, or relay is killed while it drains" $given $least) -}}
{{- end -}}
{{- end -}}
