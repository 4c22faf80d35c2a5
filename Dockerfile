# syntax=docker/dockerfile:1

# The images of Regulars, a target each: gateway, member, reporting, cli. `make images` builds them all, with version and revision.
#
# An image is the base and three layers: what the kit needs (the same in all of them), what its service needs besides, and our own code.
# All are filled in stages before, and copied: nothing runs in the image itself, which so has no package manager's leftovers in it.
# deploy/images/layer.py sees to it that the same commit over the same base gives the same layers.

ARG BASE=python:3.11-slim-bookworm
# Of the major version that is backed up, over the same Debian as the base.
ARG POSTGRES=postgres:18-bookworm


# --- what builds -------------------------------------------------------------------------------------------------------------------

FROM ${BASE} AS build
ARG SOURCE_DATE_EPOCH=1767225600
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} \
    PYTHONHASHSEED=0 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    UV_LINK_MODE=copy \
    UV_NO_PROGRESS=1 \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /build
COPY scripts/uv.lock.txt scripts/build.lock.txt scripts/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --no-deps --require-hashes -r scripts/uv.lock.txt -r scripts/build.lock.txt
COPY deploy/images/layer.py .

FROM build AS wheels
COPY LICENSE .
COPY protos/pyproject.toml protos/
COPY protos/gen protos/gen
COPY kit/pyproject.toml kit/
COPY kit/src kit/src
COPY services services
COPY cli/pyproject.toml cli/
COPY cli/src cli/src
RUN for package in protos kit services/member services/gateway services/reporting cli; do \
      (cd $package && python -m hatchling build -t wheel -d /wheels) || exit 1; \
    done


# --- layers ------------------------------------------------------------------------------------------------------------------------

FROM build AS kit-packages
COPY kit/requirements.lock .
RUN --mount=type=cache,target=/root/.cache/uv \
    python -m venv --without-pip /app/venv \
 && uv pip install --quiet --python /app/venv --no-deps --require-hashes -r requirements.lock \
 && mkdir -p /layer/etc \
 && cp -p /etc/passwd /etc/group /layer/etc/ \
 && echo 'regulars:x:10001:10001:Regulars:/tmp:/usr/sbin/nologin' >>/layer/etc/passwd \
 && echo 'regulars:x:10001:' >>/layer/etc/group \
 && python layer.py --library /layer

FROM kit-packages AS gateway-packages
COPY services/gateway/requirements.lock .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --quiet --python /app/venv --no-deps --require-hashes -r requirements.lock \
 && python layer.py /packages /layer

FROM kit-packages AS member-packages
COPY services/member/requirements.lock .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --quiet --python /app/venv --no-deps --require-hashes -r requirements.lock \
 && python layer.py /packages /layer

FROM kit-packages AS reporting-packages
COPY services/reporting/requirements.lock .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --quiet --python /app/venv --no-deps --require-hashes -r requirements.lock \
 && python layer.py /packages /layer

FROM kit-packages AS cli-packages
COPY cli/requirements.lock .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --quiet --python /app/venv --no-deps --require-hashes -r requirements.lock \
 && python layer.py /packages /layer

# PostgreSQL's programs, with which `regulars backup` and `regulars restore` work; of the libraries, those that the base has not.
FROM ${POSTGRES} AS postgres
COPY deploy/images/postgres.sh .
RUN bash postgres.sh /copy

FROM build AS postgres-programs
COPY --from=postgres /copy /copy
RUN python layer.py --root /copy /layer /

# Our own code. `uv pip check`: all that any package asks for is there.
FROM gateway-packages AS gateway-code
COPY --from=wheels /wheels /wheels
RUN cd /wheels && uv pip install --quiet --python /app/venv --no-deps --no-index \
      regulars_protos-*.whl regulars_kit-*.whl regulars_gateway-*.whl \
 && uv pip check --quiet --python /app/venv \
 && python /build/layer.py /code /layer /packages

FROM member-packages AS member-code
COPY --from=wheels /wheels /wheels
COPY protos/topics.yaml /code/app/protos/
COPY programmes /code/app/programmes
RUN cd /wheels && uv pip install --quiet --python /app/venv --no-deps --no-index \
      regulars_protos-*.whl regulars_kit-*.whl regulars_member-*.whl \
 && uv pip check --quiet --python /app/venv \
 && python /build/layer.py /code /layer /packages

FROM reporting-packages AS reporting-code
COPY --from=wheels /wheels /wheels
RUN cd /wheels && uv pip install --quiet --python /app/venv --no-deps --no-index \
      regulars_protos-*.whl regulars_kit-*.whl regulars_reporting-*.whl \
 && uv pip check --quiet --python /app/venv \
 && python /build/layer.py /code /layer /packages

# The doctor holds every database against its service's migrations: of gateway and reporting it reads these files, and loads no module.
FROM cli-packages AS cli-code
COPY --from=wheels /wheels /wheels
COPY protos/topics.yaml /code/app/protos/
COPY programmes /code/app/programmes
RUN cd /wheels && uv pip install --quiet --python /app/venv --no-deps --no-index \
      regulars_protos-*.whl regulars_kit-*.whl regulars_member-*.whl regulars-*.whl \
 && uv pip check --quiet --python /app/venv \
 && uv pip install --quiet --python /app/venv --no-deps --no-index regulars_gateway-*.whl regulars_reporting-*.whl \
 && python /build/layer.py /code /layer /packages


# --- images ------------------------------------------------------------------------------------------------------------------------

FROM ${BASE} AS runtime
COPY --from=kit-packages /layer/ /
ENV PATH=/app/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    # Modules come from where they were installed, and not from the folder in which a command is started.
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    # The allocator's per-thread pools would cost more memory than they save time.
    MALLOC_ARENA_MAX=2
WORKDIR /app
USER 10001:10001
STOPSIGNAL SIGTERM


FROM runtime AS gateway
COPY --from=gateway-packages /packages/ /
COPY --from=gateway-code /code/ /
ENV GATEWAY_HOST=0.0.0.0 GATEWAY_PORT=8600 OPS_LISTEN=0.0.0.0:9600
EXPOSE 8600 9600
ENTRYPOINT ["python", "-m", "gateway"]
CMD ["serve"]
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-m", "kit.probe", "http://127.0.0.1:8600/readyz"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=2026-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Regulars gateway" \
      org.opencontainers.image.description="The public REST API, stores, tills, API keys" \
      org.opencontainers.image.vendor="Regulars" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"


FROM runtime AS member
COPY --from=member-packages /packages/ /
COPY --from=member-code /code/ /
ENV MEMBER_LISTEN=0.0.0.0:8601 OPS_LISTEN=0.0.0.0:9600
EXPOSE 8601 9600
ENTRYPOINT ["python", "-m", "member"]
CMD ["serve"]
# Of `serve`; another part is asked at its operators' port (docker-compose.yml).
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-m", "kit.probe", "grpc://127.0.0.1:8601"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=2026-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Regulars member" \
      org.opencontainers.image.description="Members, their points wallet, sales and reversals" \
      org.opencontainers.image.vendor="Regulars" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"


FROM runtime AS reporting
COPY --from=reporting-packages /packages/ /
COPY --from=reporting-code /code/ /
ENV REPORTING_LISTEN=0.0.0.0:8603 OPS_LISTEN=0.0.0.0:9600
EXPOSE 8603 9600
ENTRYPOINT ["python", "-m", "reporting"]
CMD ["serve"]
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-m", "kit.probe", "grpc://127.0.0.1:8603"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=2026-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Regulars reporting" \
      org.opencontainers.image.description="Live reports from the facts of the other services" \
      org.opencontainers.image.vendor="Regulars" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"


FROM runtime AS cli
COPY --from=postgres-programs /layer/ /
COPY --from=cli-packages /packages/ /
COPY --from=cli-code /code/ /
ENV REGULARS_VAR=/app/var PG_BIN=/usr/lib/postgresql/18/bin
ENTRYPOINT ["regulars"]
CMD ["--help"]
HEALTHCHECK NONE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=2026-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Regulars command" \
      org.opencontainers.image.description="What operators do: doctor, bus, reconciliation, imports, programmes, backups" \
      org.opencontainers.image.vendor="Regulars" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
