FROM golang:1.26 AS modules
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download

# Only `docker compose --profile test` builds this stage.
FROM modules AS test
RUN apt-get update && apt-get install -qy --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/*
COPY . .
CMD ["go", "test", "-race", "./..."]

FROM modules AS build
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /tollgate .

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /tollgate /tollgate
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/tollgate"]
