# One image for every role: the command is the name of the package to run (foldin.service,
# foldin.trainer, foldin.environment, foldin.evaluation.course.play). Every file that pip installs is pinned by hash in requirements/.

ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS libraries
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# Tests and C headers that wheels bring along are never imported: 60 MB. Bytecode is compiled here, as the running
# container cannot write it; by hash, so that equal sources give equal files.
COPY requirements/run.txt requirements/
RUN python -m venv --without-pip /opt/foldin \
 && python -m pip --python /opt/foldin/bin/python install --no-compile --require-hashes -r requirements/run.txt \
 && find /opt/foldin -depth -type d \( -name tests -o -path '*/pyarrow/include' \) -exec rm -rf {} + \
 && /opt/foldin/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/foldin/lib


FROM libraries AS package
# The build backend in a venv of its own, from the same lock as on a developer's machine.
COPY requirements/dev.txt requirements/
RUN awk '/^[^ #]/ { wanted = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } wanted' \
      requirements/dev.txt > requirements/build.txt \
 && python -m venv /opt/build \
 && /opt/build/bin/python -m pip install --require-hashes -r requirements/build.txt

COPY pyproject.toml README.md LICENSE ./
COPY .ci/wheel.py .ci/wheel.py
COPY factors factors
COPY featurestore featurestore
COPY service service
COPY trainer trainer
COPY processes processes
COPY environment environment
COPY evaluation evaluation
COPY foldin foldin
COPY clients/python/foldin_client clients/python/foldin_client
RUN /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --no-index --wheel-dir dist . \
 && python -m pip --python /opt/foldin/bin/python install --no-compile --no-deps --no-index --root /package dist/*.whl \
 && /opt/foldin/bin/python -m compileall -q -s /package --invalidation-mode unchecked-hash /package/opt/foldin/lib
# The compiled fold-in, for processors such as this one: on another kind a container makes its own, 15 s of a core.
RUN PYTHONPATH=$(echo /package/opt/foldin/lib/python*/site-packages) \
    /opt/foldin/bin/python -P -m foldin.featurestore.users.compiled
# Times of whole seconds, as layers have them: by these numba knows a source again.
RUN find /package -name '*.py' -exec touch -d "@$(date +%s)" {} +


# The pages that the service has at /manual. Their notebooks are run here, with the package that was built.
FROM package AS manual
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libgomp1
COPY requirements/docs.txt requirements/
RUN python -m venv /opt/docs \
 && /opt/docs/bin/python -m pip install --no-compile --require-hashes -r requirements/docs.txt \
 && /opt/docs/bin/python -m pip install --no-compile --no-deps --no-index dist/*.whl
COPY CONTRIBUTING.md CHANGELOG.md ./
COPY docs docs
RUN PATH=/opt/docs/bin:$PATH sphinx-build -W --keep-going --quiet -d /tmp/doctrees docs manual


FROM ${PYTHON_IMAGE}
# The wheel of `implicit` links to the system's OpenMP runtime.
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log
# A fixed uid, so that volumes keep their owner across images. A named volume takes over the owner of what it covers.
RUN groupadd --gid 10001 foldin \
 && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin foldin \
 && install -d -o foldin -g foldin -m 0750 /data /data/archive /data/results \
 && install -d -o foldin -g foldin -m 0700 /data/keys /data/player-key \
 && install -d -o foldin -g foldin -m 0755 /data/scrape-key
# A change of code is a new layer of 3 MB; the one of the libraries stays.
COPY --from=libraries /opt/foldin /opt/foldin
COPY --from=package /package/opt/foldin /opt/foldin
COPY --from=manual /build/manual /opt/foldin/share/doc/foldin
COPY deploy/image/healthcheck.py /opt/foldin/healthcheck.py
# The compiled loops of fits likewise, where they are looked for by what they are made from: 25 s of a core saved.
RUN NUMBA_CACHE_DIR=/opt/foldin/share/foldin/loops /opt/foldin/bin/python -P -m foldin.trainer.fit_job.compiling

ENV PATH=/opt/foldin/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    FOLDIN_HOST=0.0.0.0 \
    FOLDIN_PORT=8080 \
    FOLDIN_CACHE_DIR=/tmp/foldin \
    NUMBA_CACHE_DIR=/tmp/numba \
    FOLDIN_ARCHIVE_DIR=/data/archive \
    FOLDIN_ENVIRONMENT_HOST=0.0.0.0
WORKDIR /data
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
  CMD ["python", "-ISB", "/opt/foldin/healthcheck.py", "http://127.0.0.1:8080/readyz"]
ENTRYPOINT ["python", "-P", "-m"]
CMD ["foldin.service"]

ARG VERSION=0.2.0.dev0
ARG REVISION=unknown
# Where this image is published from: only who publishes it knows (docs/upgrades.md).
ARG URL=
ARG SOURCE=
LABEL org.opencontainers.image.title="foldin" \
      org.opencontainers.image.description="An asynchronous recommender that learns from every rating the moment it arrives" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.url="$URL" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
