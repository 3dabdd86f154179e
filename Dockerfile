# Batchmill in one image: the API, workers and every other command.
#
#   docker build --tag batchmill:0.1.0 .
#   docker run --publish 8000:8000 --volume batchmill:/data batchmill:0.1.0
#
# Nothing secret is in it: a database's URL and the keys of buckets and backends come with the environment.

FROM python:3.13.9-slim-trixie AS build
ARG EXTRAS=builtin,postgres,bucket,otel
WORKDIR /source
RUN python -m venv /opt/batchmill
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN /opt/batchmill/bin/pip install --disable-pip-version-check --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.13.9-slim-trixie
# The built-in engine needs libgomp.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --user-group --home-dir /data --shell /usr/sbin/nologin batchmill \
 && install --directory --owner=batchmill --group=batchmill --mode=0700 /data
COPY --from=build /opt/batchmill /opt/batchmill
ENV PATH=/opt/batchmill/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BATCHMILL_DATA=/data \
    BATCHMILL_HOST=0.0.0.0 \
    BATCHMILL_METRICS_PORT=8001
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000 8001
# Of `serve` and of `worker` alike: both serve it beside /metrics.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8001/healthz', timeout=4)"]
ENTRYPOINT ["batchmill"]
CMD ["serve"]
