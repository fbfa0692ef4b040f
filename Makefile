# Two commands are all: `make run` serves, `make test` proves. `make` alone lists the rest.
.DEFAULT_GOAL := help
.PHONY: help run test cluster integration bench fuzz lint tools

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 1m
TOOLS       ?= redis-server

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST)

run: tools ## serve on :8080, with a Redis of its own if none responds at REDIS_URL
	@./run.sh

test: tools ## run the tests, race detector on, against a real redis-server, or the one at TEST_REDIS_URL
	go test -race -parallel 8 ./...  # most tests wait most of the time

cluster: tools ## run the tests, but for load and fault suites, on a Redis Cluster of three masters
	TEST_REDIS_TOPOLOGY=cluster go test ./...

integration: TOOLS = redis-server curl jq openssl nginx caddy promtool prometheus node npm npx python3 chromium
integration: tools testdata/sdk/node_modules ## run the tests that drive other programs: docs, proxies, SDKs, agents
	go test -race -tags integration -run '^TestIntegration' . ./internal/llmwire ./internal/stripe ./internal/websocket

testdata/sdk/node_modules: testdata/sdk/package-lock.json | tools
	npm ci --prefix testdata/sdk --no-audit --no-fund && touch $@

bench: tools ## print what requests cost as one table of ratios; docs/performance.md says how to compare
	go test -run '^$$' -bench '^BenchmarkTable$$' -benchtime 1x -timeout 30m .

fuzz: tools ## run every fuzz target of every package for FUZZTIME (1m)
	@for target in $$(grep -roE '^func Fuzz[A-Za-z]+' --include='*_test.go' . | sed 's|/[^/]*:func |:|'); do \
		go test -run '^$$' -fuzz "^$${target#*:}\$$" -fuzztime $(FUZZTIME) "$${target%:*}" || exit 1; done

lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	go vet -tags integration ./...
	go run $(STATICCHECK) -tags integration ./...

tools: ## install the programs in TOOLS (redis-server) that are missing
	@missing=; for tool in $(TOOLS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	[ -n "$$missing" ] || exit 0; \
	sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	if command -v apt-get >/dev/null; then \
		$$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
			$$(echo $$missing | sed 's/\<nginx\>/nginx-light/; s/\<promtool\>/prometheus/; s/\<node\>/nodejs/; s/\<npx\>/npm/'); \
	elif command -v brew >/dev/null; then brew install $$(echo $$missing | sed 's/redis-server/redis/; s/promtool/prometheus/'); \
	else false; fi || \
	{ echo "install$$missing by hand (Redis 7 or Valkey 7.2 or newer), so that they are in PATH" >&2; exit 1; }
