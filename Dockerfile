# The HTTP service: no torch, no compiler, no root, and a root file system that may be read-only.
#   docker build -t srgan .
#   docker run --stop-timeout 60 --read-only --tmpfs /tmp -v srgan-data:/data -p 8000:8000 -e SRGAN_KEYS_FILE=/keys.toml -v ./keys.toml:/keys.toml:ro srgan
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY srgan srgan
COPY service service
COPY weights weights
RUN python -m venv /opt/srgan && /opt/srgan/bin/pip install --no-cache-dir --no-compile '.[service]'

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /data srgan && install -d -o srgan -g srgan /data
COPY --from=build /opt/srgan /opt/srgan
ENV PATH=/opt/srgan/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    SRGAN_HOST=0.0.0.0 SRGAN_PORT=8000 SRGAN_DATA_DIR=/data
USER 10001
VOLUME /data
EXPOSE 8000
# SIGTERM is what the service understands; what it works on gets SRGAN_GRACE_S, so docker must wait longer than that.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['SRGAN_PORT'] + '/healthz', timeout=2)"]
ENTRYPOINT ["srgan", "serve"]
