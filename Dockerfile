# The command `extism-host serve` with two plugins: `docker build -t extism-host .`
# Put your own plugins and configuration in place of deploy/extism-host.yaml and plugins/.

FROM node:24-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
ENV PATH=/root/.cargo/bin:$PATH
RUN curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain none --profile minimal
COPY . .
# Builds the addon with the Rust of rust-toolchain.toml.
RUN npm ci && node scripts/pack.js /tmp
WORKDIR /app
RUN npm init -y > /dev/null \
 && npm install --no-audit --no-fund --omit=dev /tmp/extism-host-binding-*.tgz /tmp/extism-host-[0-9]*.tgz /tmp/extism-host-fastify-*.tgz /tmp/extism-host-cli-*.tgz \
      /tmp/extism-host-connect-*.tgz @nats-io/transport-node@3 @nats-io/jetstream@3 mqtt@5 pg@8 redis@6 \
 && mkdir plugins \
 && cp /src/plugins/say-hello/say-hello.wasm /src/plugins/visits-rust/visits.wasm plugins/ \
 && cp /src/deploy/extism-host.yaml /src/deploy/healthcheck.js .
# The root file system is read-only: what is compiled comes with the image.
ENV EXTISM_HOST_CACHE_DIR=/app/compiled
RUN install -d -m 700 compiled \
 && STORE_URL=memory: node_modules/.bin/extism-host compile --config extism-host.yaml

FROM gcr.io/distroless/nodejs24-debian12:nonroot
WORKDIR /app
# The cache must belong to the user that reads it.
COPY --from=build --chown=65532:65532 /app /app
ENV EXTISM_HOST_CACHE_DIR=/app/compiled NODE_ENV=production
USER 65532:65532
EXPOSE 7070
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["/nodejs/bin/node", "healthcheck.js"]
# Not by npx, which does not pass signals on.
CMD ["node_modules/@extism-host/cli/bin/extism-host.js", "serve", "--config", "extism-host.yaml"]
