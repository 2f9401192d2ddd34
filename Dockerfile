# The image of relay: a wheel and its dependencies in one virtual environment on a slim Python.
#
#   docker build -t relay .
#   docker run --rm -p 127.0.0.1:8080:8080 -v relay-log:/var/lib/relay \
#     -v ./relay.yaml:/etc/relay/relay.yaml:ro -e RELAY_SERVER__HOST=0.0.0.0 relay serve --config /etc/relay/relay.yaml
#
# Both listeners stay on loopback, as everywhere: the image sets neither RELAY_SERVER__HOST nor RELAY_SERVER__ADMIN_HOST.
# Whoever publishes a port sets its host to 0.0.0.0 *together with* `auth.mode: api_keys`; with `auth.mode: none` relay
# refuses to start on anything but loopback (exit status 2). `server.allowed_hosts` must name the host names clients use.
# Do not publish the admin port (/healthz, /readyz, /metrics) to people.

# Pin it further by digest where the build must be repeatable: --build-arg PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY . .
# The environment is made without pip: what runs needs none, and what is not there cannot be misused.
# DL3013 asks for a pinned version; what is installed is the one wheel built in the line before.
# hadolint ignore=DL3013
RUN pip wheel --no-deps --wheel-dir /wheel . \
 && python -m venv --without-pip /opt/relay \
 && set -- /wheel/*.whl \
 && pip --python /opt/relay/bin/python install "$1[embedded,fast]"

FROM ${PYTHON_IMAGE}
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="relay" \
      org.opencontainers.image.description="Event-stream gateway and fan-out relay for agent runs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 relay \
 && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /var/lib/relay \
      --shell /usr/sbin/nologin relay \
 && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/relay
COPY --from=build /opt/relay /opt/relay
# The embedded log has a directory of its own *inside* the volume: relay makes it (mode 700) and so owns it even where
# the volume's root belongs to somebody else.
ENV PATH=/opt/relay/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RELAY_EMBEDDED__DATA_DIR=/var/lib/relay/embedded
VOLUME /var/lib/relay
WORKDIR /var/lib/relay
USER 10001:10001
EXPOSE 8080 9464
STOPSIGNAL SIGTERM
# http.client, not urllib: a proxy in the environment must not see (or answer) this question. Whoever moves the admin
# listener does it by RELAY_SERVER__ADMIN_PORT, or this check does not find it.
HEALTHCHECK --interval=10s --timeout=4s --start-period=15s --retries=3 CMD ["python", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ.get('RELAY_SERVER__ADMIN_PORT', '9464')), timeout=3); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["relay"]
CMD ["serve"]
