# The list of dependencies on its own: only a change in it, not one elsewhere in pyproject.toml, downloads gigabytes again.
FROM python:3.11-slim AS requirements
WORKDIR /build
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*p['dependencies'], *p['optional-dependencies']['openvino'], sep='\n')" > requirements.txt


FROM python:3.11-slim AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# Without pip of its own: nothing is installed once the image is built.
RUN python -m venv --without-pip /opt/venv
COPY --from=requirements /build/requirements.txt ./
COPY constraints.txt ./
# PyPI's torch brings CUDA along. https://download.pytorch.org/whl/cpu here leaves it out, where there is no NVIDIA GPU.
ARG PIP_EXTRA_INDEX_URL
RUN python -m pip --python /opt/venv/bin/python install --constraint constraints.txt --requirement requirements.txt


# Apart from the virtual environment, so that a change in the source code leaves its layer as it was.
FROM python:3.11-slim AS package
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# For the modules that decode pictures and compute networks. The official image has Python's headers; one in its place may
# be Debian's, without.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev
COPY pyproject.toml README.md ./
COPY training training
COPY app app
RUN python -m pip install --no-deps --target /opt/refit . \
    && ls /opt/refit/app/serving/kernels.*.so /opt/refit/training/rows.*.so /opt/refit/training/scan.*.so


FROM python:3.11-slim
# A fixed number, so that files on a volume belong to the same user after every rebuild.
RUN groupadd --gid 10001 refit \
    && useradd --uid 10001 --gid refit --no-create-home --home-dir /srv/data --shell /usr/sbin/nologin refit \
    && install --directory --owner refit --group refit /srv/data /srv/models
COPY --from=builder /opt/venv /opt/venv
COPY --from=package /opt/refit /opt/refit
# Owned by the user of the service, which adds fine-tuned versions next to the default model.
COPY --chown=refit:refit models /srv/models

# Caches live in the data folder because everything else may be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/refit \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    APP_HOST=0.0.0.0 \
    APP_MODELS_DIR=/srv/models \
    APP_DATA_DIR=/srv/data \
    REFIT_CACHE=/srv/data/cache \
    MPLCONFIGDIR=/srv/data/cache/matplotlib
WORKDIR /srv
USER refit
EXPOSE 8000
# http.client, because urllib would ask a proxy from the environment for the container's own address.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('APP_PORT') or 8000), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "app", "serve"]
