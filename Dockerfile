# fl-app with all it needs. By itself it is the service: it prints its address and a token.
#   docker build -t fl-app .
#   docker run --rm --shm-size 1g -p 8000:8000 fl-app
#   docker run --rm --shm-size 1g fl-app fl-app run
FROM python:3.12-slim

# CPU wheels. For a GPU:  --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PATH=/opt/fl-app/.venv/bin:$PATH \
    HOME=/var/lib/fl-app \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /opt/fl-app
RUN useradd --system --create-home --home-dir /var/lib/fl-app fl-app \
    && python -m venv .venv

# What is installed changes seldom, the code often: a layer each.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY fl_app/__init__.py fl_app/__init__.py
COPY strategies/__init__.py strategies/__init__.py
RUN .venv/bin/pip install --extra-index-url "$TORCH_INDEX" -c constraints.txt -e .

COPY fl_app fl_app
COPY strategies strategies
RUN mkdir -p results certificates /keys/server /keys/service /keys/north /keys/south \
        /var/lib/fl-app/.local/state/fl-app \
    && .venv/bin/fl-app setup \
    && chown -R fl-app /var/lib/fl-app /keys results certificates

USER fl-app
VOLUME ["/opt/fl-app/results"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health')"]
CMD ["fl-app", "serve", "--host", "0.0.0.0", "--make-token"]
