# The binary and nothing else. Data in /var/lib/tidings, configuration where the command says.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package tidings-server

FROM debian:bookworm-slim
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --home-dir /var/lib/tidings --create-home tidings
COPY --from=build /src/target/release/tidings /usr/local/bin/tidings
USER tidings
VOLUME /var/lib/tidings
EXPOSE 8080
ENTRYPOINT ["tidings"]
