# One image for every process: what runs is said by the command, as in launch/processes.py.
FROM python:3.11-slim AS build
WORKDIR /app
RUN python -m venv /venv
COPY requirements-run.lock ./
# Wheels alone, so that nothing is compiled and no code of a package runs here.
RUN /venv/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary :all: --require-hashes \
    -r requirements-run.lock && rm requirements-run.lock
COPY feedmesh feedmesh
COPY gateway gateway
COPY runtime runtime
COPY services services
# Once, as nothing can be written where it runs.
RUN /venv/bin/python -m compileall -q /app

FROM python:3.11-slim
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
COPY --from=build /venv /venv
COPY --from=build /app /app
# A number, so that Kubernetes can tell that it is not root.
USER 10001:10001
# Kubernetes asks by itself (k8s/components/process).
HEALTHCHECK NONE
CMD ["python", "-m", "gateway"]
