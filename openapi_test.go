package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// document is an OpenAPI document, as far as the tests read it.
type document struct {
	Paths      map[string]map[string]json.RawMessage
	Components struct {
		Responses map[string]*documentedResponse
		Headers   map[string]*documentedHeader
		Schemas   map[string]any
	}
}

type documentedOperation struct {
	Responses map[string]*documentedResponse
}

type documentedResponse struct {
	Ref     string `json:"$ref"`
	Headers map[string]*documentedHeader
	Content map[string]struct{ Schema any }
}

type documentedHeader struct {
	Ref      string `json:"$ref"`
	Required bool
	Schema   any
}

var openAPI = sync.OnceValue(func() *document {
	source, err := os.ReadFile("openapi.json")
	d := new(document)
	if err == nil {
		err = json.Unmarshal(source, d)
	}
	if err != nil {
		panic(err)
	}
	return d
})

// operation returns the operation that a request is of, nil if the document has none.
func (d *document) operation(method, path string) (*documentedOperation, error) {
	path, _, _ = strings.Cut(path, "?")
	template := d.template(path)
	if template == "" {
		template = d.template("/" + defaultTenant + path)
	}
	if template == "/{tenantId}/auth/verify" {
		method = "GET" // stands for all
	}
	source, ok := d.Paths[template][strings.ToLower(method)]
	if !ok {
		return nil, nil
	}
	operation := new(documentedOperation)
	return operation, json.Unmarshal(source, operation)
}

// template returns the path of the document that stands for a path: the one with the most literal segments.
func (d *document) template(path string) (best string) {
	segments := strings.Split(path, "/")
	for template := range d.Paths {
		parts := strings.Split(template, "/")
		matches := len(parts) == len(segments)
		for i := 1; matches && i < len(parts); i++ {
			matches = parts[i] == segments[i] || strings.HasPrefix(parts[i], "{") && !slices.Contains([]string{"", ".", ".."}, segments[i])
		}
		if matches && (best == "" || strings.Count(template, "{") < strings.Count(best, "{")) {
			best = template
		}
	}
	return best
}

// problems returns what a response has that the document does not allow. It passes over requests of which the document
// knows nothing.
func (d *document) problems(method, path string, got reply) (all []string) {
	operation, err := d.operation(method, path)
	if err != nil || operation == nil {
		return nil
	}
	response := operation.Responses[fmt.Sprint(got.status)]
	if response == nil { // OpenAPI, section 4.8.16: a range, such as 4XX
		response = operation.Responses[fmt.Sprintf("%dXX", got.status/100)]
	}
	if response == nil {
		return []string{"the status is not documented"}
	}
	if name, ok := strings.CutPrefix(response.Ref, "#/components/responses/"); ok {
		response = d.Components.Responses[name]
	}
	for name, header := range response.Headers {
		if ref, ok := strings.CutPrefix(header.Ref, "#/components/headers/"); ok {
			header = d.Components.Headers[ref]
		}
		if value := got.header.Get(name); value != "" {
			all = append(all, d.mismatches(name, header.Schema, value)...)
		} else if header.Required {
			all = append(all, name+" is missing")
		}
	}
	mediaType, _, _ := strings.Cut(got.header.Get("Content-Type"), ";")
	content, known := response.Content[cmp.Or(mediaType, "application/json")]
	switch {
	case method == "HEAD":
	case !known && got.body != "":
		all = append(all, "no body of that type is documented")
	case known && (mediaType == "application/json" || mediaType == ""):
		var value any
		if err := json.Unmarshal([]byte(got.body), &value); err != nil {
			return append(all, err.Error())
		}
		all = append(all, d.mismatches("body", content.Schema, value)...)
	}
	return all
}

// mismatches returns why a value is not of a schema. A keyword that it does not know is a mismatch, too.
func (d *document) mismatches(path string, schema, value any) (all []string) {
	keywords, ok := schema.(map[string]any)
	if !ok {
		return []string{path + " has no schema"}
	}
	for _, keyword := range slices.Sorted(maps.Keys(keywords)) {
		all = append(all, d.keyword(path, keywords, keyword, value)...)
	}
	return all
}

// keyword returns why a value is not what one keyword of a schema says.
func (d *document) keyword(path string, schema map[string]any, keyword string, value any) []string {
	argument, wrong := schema[keyword], []string{fmt.Sprintf("%s is %v, against its %s", path, value, keyword)}
	object, isObject := value.(map[string]any)
	array, isArray := value.([]any)
	number, isNumber := value.(float64)
	text, isText := value.(string)
	switch keyword {
	case "$ref":
		name := strings.TrimPrefix(argument.(string), "#/components/schemas/")
		return d.mismatches(path, d.Components.Schemas[name], value)
	case "type":
		if types, ok := argument.([]any); ok && slices.ContainsFunc(types, func(t any) bool { return isOfType(value, t) }) ||
			isOfType(value, argument) {
			return nil
		}
	case "anyOf":
		for _, schema := range argument.([]any) {
			if len(d.mismatches(path, schema, value)) == 0 {
				return nil
			}
		}
	case "const":
		if value == argument {
			return nil
		}
	case "enum":
		if slices.Contains(argument.([]any), value) {
			return nil
		}
	case "pattern":
		if !isText || regexp.MustCompile(argument.(string)).MatchString(text) {
			return nil
		}
	case "minimum":
		if !isNumber || number >= argument.(float64) {
			return nil
		}
	case "maximum":
		if !isNumber || number <= argument.(float64) {
			return nil
		}
	case "maxItems":
		if !isArray || float64(len(array)) <= argument.(float64) {
			return nil
		}
	case "items":
		return d.each(array, func(i int) []string { return d.mismatches(fmt.Sprintf("%s[%d]", path, i), argument, array[i]) })
	case "required":
		if !isObject || !slices.ContainsFunc(argument.([]any), func(name any) bool { _, ok := object[name.(string)]; return !ok }) {
			return nil
		}
	case "properties", "additionalProperties":
		return d.members(path, schema, keyword, object)
	case "description", "examples", "format", "default":
		return nil
	}
	return wrong
}

func (d *document) each(array []any, f func(i int) []string) (all []string) {
	for i := range array {
		all = append(all, f(i)...)
	}
	return all
}

// members checks the members of an object that a schema names, or those that it does not name.
func (d *document) members(path string, schema map[string]any, keyword string, object map[string]any) (all []string) {
	named, _ := schema["properties"].(map[string]any)
	for name, member := range object {
		memberSchema, known := named[name]
		switch {
		case known == (keyword == "additionalProperties"):
		case known:
			all = append(all, d.mismatches(path+"."+name, memberSchema, member)...)
		case schema[keyword] == false:
			all = append(all, path+"."+name+" is not documented")
		default:
			all = append(all, d.mismatches(path+"."+name, schema[keyword], member)...)
		}
	}
	return all
}

func isOfType(value, name any) bool {
	switch v := value.(type) {
	case nil:
		return name == "null"
	case bool:
		return name == "boolean"
	case string:
		return name == "string"
	case float64:
		return name == "number" || name == "integer" && v == float64(int64(v))
	case []any:
		return name == "array"
	}
	return name == "object"
}

// wantDocumented checks that a response of the service is as openapi.json says. All that the tests send through do is.
func (got reply) wantDocumented(t testing.TB, method, path string) {
	t.Helper()
	if got.header.Get("X-Request-Id") == "" {
		return // a proxy has responded itself
	}
	for _, problem := range openAPI().problems(method, path, got) {
		t.Errorf("%s %s: %d %s is not what openapi.json says: %s", method, path, got.status, got.body, problem)
	}
}

// openapi.json has every route and no other, and is what the service shows.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	routes, documented := make(map[string]bool), make(map[string]bool)
	for _, route := range allRoutes() {
		method, path := routeOf(strings.TrimSuffix(route.pattern, "/{$}")) // /admin/ is not listed beside /admin
		if !strings.HasPrefix(path, "/{tenantId}/") && openAPI().Paths["/{tenantId}"+path] != nil {
			continue // the same for the tenant default
		}
		if method == "" {
			method = "GET" // stands for all
		}
		routes[method+" "+path] = true
	}
	for path, item := range openAPI().Paths {
		for method := range item {
			if method != "parameters" {
				documented[strings.ToUpper(method)+" "+path] = true
			}
		}
	}
	for route := range routes {
		if !documented[route] {
			t.Errorf("%s is not documented", route)
		}
	}
	for route := range documented {
		if !routes[route] {
			t.Errorf("%s is documented, but does not exist", route)
		}
	}
	if len(routes) < 20 {
		t.Errorf("only %d routes were found", len(routes))
	}
	source, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	got := newService(t).do(t, "GET", "/openapi.json", "")
	got.want(t, 200, "")
	if got.body != string(source) {
		t.Error("the service shows another document")
	}
}

// The validation finds what it is for.
func TestOpenAPIProblems(t *testing.T) {
	for _, test := range []struct {
		name, method, path, body string
		status                   int
		header                   string
		want                     string
	}{
		{"right", "POST", "/abc/tokens/consume", `{"tokensLeft":1}`, 200, "", ""},
		{"right for the default tenant", "POST", "/tokens/consume", `{"charged":1,"tokensLeft":1}`, 200, "", ""},
		{"unknown path", "POST", "/abc/tokens/other", `x`, 200, "", ""},
		{"unknown status", "POST", "/abc/tokens/consume", `{}`, 201, "", "the status is not documented"},
		{"unknown member", "GET", "/abc/auth/key?x=1", `{"userId":null,"group":"g","createdAt":"2026-01-02T03:04:05.678Z",` +
			`"expiresAt":null,"tokensLeft":1,"x":1}`, 200, "", "body.x is not documented"},
		{"missing member", "GET", "/abc/auth/anonymous", `{}`, 200, "", ""},
		{"missing member of a login", "POST", "/abc/auth/anonymous", `{"tokensLeft":1}`, 200, "",
			"body is map[tokensLeft:1], against its required"},
		{"a fraction", "POST", "/abc/auth/anonymous", `{"apiKey":"` + someKey + `","tokensLeft":1.5}`, 200, "",
			"body.tokensLeft is 1.5, against its type"},
		{"a bad key", "POST", "/abc/auth/anonymous", `{"apiKey":"x","tokensLeft":1}`, 200, "", "body.apiKey is x, against its pattern"},
		{"an element", "GET", "/admin/tenants", `{"tenants":["a","-"]}`, 200, "", "body.tenants[1] is -, against its pattern"},
		{"no JSON", "POST", "/abc/tokens/consume", `x`, 200, "", "invalid character 'x' looking for beginning of value"},
		{"a body", "DELETE", "/abc/admin/tokens", `{}`, 204, "", "no body of that type is documented"},
		{"no header", "GET", "/abc/admin/keys/x", `{"error":"x"}`, 401, "", "WWW-Authenticate is missing"},
		{"a bad header", "GET", "/abc/admin/keys/x", `{"error":"x"}`, 401, "Basic", "WWW-Authenticate is Basic, against its pattern"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := reply{test.status, map[string][]string{}, test.body}
			if test.header != "" {
				got.header.Set("WWW-Authenticate", test.header)
			}
			if got := strings.Join(openAPI().problems(test.method, test.path, got), "; "); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	if got := openAPI().mismatches("x", map[string]any{"minProperties": 1.0}, nil); len(got) != 1 {
		t.Errorf("an unknown keyword: %q", got)
	}
}
