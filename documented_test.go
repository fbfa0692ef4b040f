package main

import (
	"cmp"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/providertest"
)

// These tests compare the docs and openapi.json with the tables of the program. docs_test.go runs the commands in them.

// readFile returns the content of a file of the repository.
func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// docBlock is a fenced block of a Markdown file.
type docBlock struct {
	section  string // the last heading of the second level above it
	line     int
	language string
	text     string
}

func docBlocks(t *testing.T, file string) (blocks []docBlock) {
	t.Helper()
	open, section := false, ""
	for i, line := range strings.Split(readFile(t, file), "\n") {
		language, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && !open:
			blocks, open = append(blocks, docBlock{section, i + 1, language, ""}), true
		case fence:
			open = false
		case open:
			blocks[len(blocks)-1].text += line + "\n"
		case strings.HasPrefix(line, "## "):
			section = line[3:]
		}
	}
	if open {
		t.Fatalf("%s: the last block is not closed", file)
	}
	return blocks
}

var docCode = regexp.MustCompile("`([^`]*)`")

// tableRows returns the cells of the rows of all tables in a Markdown text, without heads.
func tableRows(text string) (rows [][]string) {
	for line := range strings.Lines(text) {
		inner, ok := strings.CutPrefix(strings.TrimSpace(line), "|")
		if !ok || strings.HasPrefix(inner, "---") {
			continue
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.TrimSuffix(inner, "|"), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		rows = append(rows, cells)
	}
	return rows
}

// documentedRoutes returns the routes that the tables of the section Routes in a file list in their first column: the
// method, or "" for any, and the path below the tenant.
func documentedRoutes(t *testing.T, file string) (routes []string) {
	t.Helper()
	_, section, _ := strings.Cut(readFile(t, file), "\n## Routes\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, row := range tableRows(section) {
		method := ""
		for _, code := range docCode.FindAllStringSubmatch(row[0], -1) {
			path := code[1]
			if first, rest, ok := strings.Cut(path, " "); ok {
				method, path = first, rest
			}
			path, _, _ = strings.Cut(path, "?")
			path = strings.TrimPrefix(strings.TrimPrefix(path, "…"), "/{tenantId}")
			if strings.HasPrefix(path, "/") && !strings.Contains(path, "…") { // not a body, nor a hint to another page
				routes = append(routes, strings.TrimSpace(method+" "+path))
			}
		}
	}
	return routes
}

// Every route has a row in docs/api.md or, below /v1/, in docs/gateway.md, and there are no others.
func TestDocumentedRoutes(t *testing.T) {
	t.Parallel()
	listed, exist := make(map[string]bool), make(map[string]bool)
	for _, file := range []string{"docs/api.md", "docs/gateway.md"} {
		for _, route := range documentedRoutes(t, file) {
			if strings.Contains(route, " /v1/") != (file == "docs/gateway.md") {
				t.Errorf("%s lists %s, which belongs to the other page", file, route)
			}
			listed[route] = true
		}
	}
	for _, route := range allRoutes() {
		method, path := routeOf(strings.TrimSuffix(route.pattern, "{$}"))
		exist[strings.TrimSpace(method+" "+strings.TrimPrefix(path, "/{tenantId}"))] = true
	}
	wantSameNames(t, exist, listed)
}

// ruledMembers returns the members of configs that the files with rules for them name: the keys of each strict.Rules.
func ruledMembers(t *testing.T) map[string]bool {
	t.Helper()
	members := make(map[string]bool)
	for _, path := range []string{
		"config.go", "tenant.go", "internal/gateway/endpoint.go", "internal/gateway/price.go", "internal/gateway/caching.go",
		"internal/gateway/session_rules.go",
	} {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(node ast.Node) bool {
			rules, ok := node.(*ast.CompositeLit)
			if !ok {
				return true
			}
			if kind, ok := rules.Type.(*ast.SelectorExpr); !ok || kind.Sel.Name != "Rules" {
				return true
			}
			for _, element := range rules.Elts {
				if name, ok := element.(*ast.KeyValueExpr).Key.(*ast.BasicLit); ok {
					text, _ := strconv.Unquote(name.Value)
					members[text] = true
				}
			}
			return true
		})
	}
	return members
}

// schemaMembers adds the names of all properties in a schema to members.
func schemaMembers(schema any, members map[string]bool) {
	switch schema := schema.(type) {
	case []any:
		for _, part := range schema {
			schemaMembers(part, members)
		}
	case map[string]any:
		if ref, ok := schema["$ref"].(string); ok {
			schemaMembers(openAPI().Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")], members)
		}
		properties, _ := schema["properties"].(map[string]any)
		for name, property := range properties {
			members[name] = true
			schemaMembers(property, members)
		}
		for _, keyword := range []string{"additionalProperties", "items", "anyOf"} {
			schemaMembers(schema[keyword], members)
		}
	}
}

// Every member of a config that has a rule is in docs/configuration.md and in openapi.json's schema of configs, and no
// other member is.
func TestDocumentedMembers(t *testing.T) {
	t.Parallel()
	members := ruledMembers(t)
	_, page, _ := strings.Cut(readFile(t, "docs/configuration.md"), "\n## A tenant's config\n")
	page, _, _ = strings.Cut(page, "\n## Misspelled members\n")
	listed := make(map[string]bool)
	for _, row := range tableRows(page) {
		for _, code := range docCode.FindAllStringSubmatch(row[0], -1) {
			for name := range strings.SplitSeq(strings.TrimLeft(code[1], "…."), ".") {
				if !strings.HasPrefix(name, "<") { // what the tenant names
					listed[name] = true
				}
			}
		}
	}
	isKind := func(name string, _ bool) bool { // is the name of a map's member
		kind := llmwire.Kind(name)
		return llmwire.IsKind(kind) || kind == llmwire.Realtime
	}
	maps.DeleteFunc(members, isKind) // transcription is both
	maps.DeleteFunc(listed, isKind)
	t.Run("docs/configuration.md", func(t *testing.T) { wantSameNames(t, members, listed) })
	documented := make(map[string]bool)
	schemaMembers(openAPI().Components.Schemas["Config"], documented)
	maps.DeleteFunc(documented, isKind)
	t.Run("openapi.json", func(t *testing.T) { wantSameNames(t, members, documented) })
}

// wantSameNames expects that what exists and what is listed are the same names.
func wantSameNames(t *testing.T, exist, listed map[string]bool) {
	t.Helper()
	if len(exist) == 0 {
		t.Error("there are no names")
	}
	for _, name := range slices.Sorted(maps.Keys(exist)) {
		if !listed[name] {
			t.Errorf("%s is not listed", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(listed)) {
		if !exist[name] {
			t.Errorf("%s is listed, but does not exist", name)
		}
	}
}

// documentedTenants are the bodies of POST /admin/tenants in a page's commands.
var documentedTenants = regexp.MustCompile(`(?s)(\{"tenantId".*?\})(?:'|\nJSON)`)

// The first key of each tenant that the first two pages create pays for a request with a system prompt. A tenant
// without endpoints, such as that of the README, is given those of the gateway's page.
func TestDocumentedTenantsPay(t *testing.T) {
	t.Parallel()
	s, p := newService(t), providertest.New(t)
	var bodies []map[string]any
	for _, file := range []string{"docs/gateway.md", "README.md"} {
		for _, block := range docBlocks(t, file) {
			for _, match := range documentedTenants.FindAllStringSubmatch(block.text, -1) {
				text := strings.NewReplacer("https://api.openai.com", p.URL, "https://api.anthropic.com", p.URL,
					"http://localhost:8090", p.URL, "$OPENAI_API_KEY", providertest.Key, "$ANTHROPIC_API_KEY", providertest.Key).
					Replace(match[1])
				var body map[string]any
				if err := json.Unmarshal([]byte(text), &body); err != nil {
					t.Fatalf("%s:%d: %v in\n%s", file, block.line, err, text)
				}
				bodies = append(bodies, body)
			}
		}
	}
	if len(bodies) != 3 {
		t.Fatalf("%d tenants are documented", len(bodies))
	}
	providers := bodies[0]["config"].(map[string]any)["providers"]
	for _, body := range bodies {
		config := body["config"].(map[string]any)
		if config["providers"] == nil {
			config["providers"] = providers
		}
		name, tenant := body["tenantId"], newTenantID()
		body["tenantId"] = tenant
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		s.admin(t, "POST", "/admin/tenants", string(text)).want(t, 201, `{"success":true}`)
		for group := range config["user_groups"].(map[string]any) {
			key := s.issue(t, tenant, `"userId":"u","group":"`+group+`"`)
			for i := range 2 { // as a conversation would
				got := s.do(t, "POST", "/"+tenant+"/v1/chat/completions", `{"model":"gpt-6-luna","messages":[`+
					`{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"Hello!"}]}`, bearer(key))
				if err := got.is(200); err != nil {
					t.Errorf("%s, a key of %s, request %d: %v", name, group, i, err)
				}
			}
		}
	}
}

// optionDefaults returns the defaults of all options by their environment variables.
func optionDefaults() map[string]string {
	defaults, s := make(map[string]string), new(settings)
	for _, o := range s.allOptions() {
		defaults[o.Env] = o.Default
		if o.SecretFile {
			defaults[o.SecretEnv()] = ""
		}
	}
	return defaults
}

// The recipes that expose the gateway wait for tollgate as long as it works on a request, take the bodies that it takes,
// and end idle connections before it does.
func TestDocumentedProxyBounds(t *testing.T) {
	defaults := optionDefaults()
	duration := func(text string) time.Duration {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		return d
	}
	idle := duration(cmp.Or(defaults["IDLE_TIMEOUT"], "2m"))
	for language, members := range map[string][3]string{
		"nginx":     {`proxy_read_timeout (\w+);`, `keepalive_timeout (\w+);`, `client_max_body_size (\w+);`},
		"caddyfile": {`response_header_timeout (\w+)\n`, `keepalive (\w+)\n`, `max_size (\w+)\n`},
	} {
		recipe := ""
		for _, block := range docBlocks(t, "docs/proxies.md") {
			if block.section == "Expose the gateway" && block.language == language {
				recipe = block.text
			}
		}
		var values [3]string
		for i, pattern := range members {
			match := regexp.MustCompile(pattern).FindStringSubmatch(recipe)
			if match == nil {
				t.Fatalf("the recipe for %s has no %s", language, pattern)
			}
			values[i] = match[1]
		}
		if got, want := duration(values[0]), duration(defaults["GATEWAY_TIMEOUT"]); got < want {
			t.Errorf("%s waits for %s, and tollgate works for %s", language, got, want)
		}
		if got := duration(values[1]); got > idle/2 {
			t.Errorf("%s keeps connections for %s, and tollgate for %s", language, got, idle)
		}
		megabytes, _ := strconv.Atoi(strings.TrimRight(values[2], "mMiB"))
		if got, want := megabytes<<20, defaults["MAX_GATEWAY_BODY"]; strconv.Itoa(got) != want {
			t.Errorf("%s takes %d bytes, and tollgate %s", language, got, want)
		}
	}
}

// docs/design.md lists the files of package main and the packages, and those that it and the README name exist.
func TestDocumentedFiles(t *testing.T) {
	page := readFile(t, "docs/design.md")
	_, layers, _ := strings.Cut(page, "\n## The packages\n")
	_, layers, _ = strings.Cut(layers, "\n```text\n")
	layers, _, _ = strings.Cut(layers, "\n\n")
	patterns := strings.Fields(layers)
	files, _ := filepath.Glob("*.go")
	for _, file := range files {
		listed := strings.HasSuffix(file, "_test.go")
		for _, pattern := range patterns {
			matches, _ := filepath.Match(pattern, file)
			listed = listed || matches
		}
		if !listed {
			t.Errorf("docs/design.md does not list %s beside what its files do", file)
		}
	}
	packages, _ := filepath.Glob("internal/*")
	for _, path := range packages {
		if name := filepath.Base(path); !regexp.MustCompile(`\b` + name + `\b`).MatchString(page) {
			t.Errorf("docs/design.md does not name the package %s", name)
		}
	}
	named := regexp.MustCompile("`([a-z_/*…]+\\.(?:go|lua|acl|json))`")
	for _, match := range named.FindAllStringSubmatch(page+readFile(t, "README.md"), -1) {
		found := 0
		for _, dir := range []string{".", "lua", "internal", "internal/*"} {
			paths, _ := filepath.Glob(filepath.Join(dir, match[1]))
			found += len(paths)
		}
		if found == 0 {
			t.Errorf("there is no %s", match[1])
		}
	}
}

// docs/payments.md says which events a webhook endpoint at Stripe is to send: those that are read.
func TestDocumentedEvents(t *testing.T) {
	eventType := regexp.MustCompile(`"((?:checkout|invoice|customer|charge)\.[a-z_.]+)"`)
	read := make(map[string]bool)
	for _, match := range eventType.FindAllStringSubmatch(readFile(t, "internal/stripe/event.go"), -1) {
		read[match[1]] = true
	}
	page := readFile(t, "docs/payments.md")
	enabled, listed := make(map[string]bool), make(map[string]bool)
	for _, match := range regexp.MustCompile(`enabled_events\[\]=([a-z_.]+)`).FindAllStringSubmatch(page, -1) {
		enabled[match[1]] = true
	}
	_, table, _ := strings.Cut(page, "| event | what it is for |")
	table, _, _ = strings.Cut(table, "\n\n")
	for _, row := range tableRows(table) {
		prefix := ""
		for _, match := range docCode.FindAllStringSubmatch(row[0], -1) {
			name := match[1]
			if strings.HasPrefix(name, ".") {
				name = prefix + name
			}
			listed[name], prefix = true, name[:strings.LastIndex(name, ".")]
		}
	}
	wantSameNames(t, read, enabled)
	wantSameNames(t, read, listed)
}
