package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tollgate/internal/gateway"
	"tollgate/internal/redistest"
	"tollgate/internal/stripe"
	"tollgate/internal/telemetry"
)

// These tests compare docs/grafana.json and docs/alerts.yml with the metrics of the program. In integration_test.go
// promtool and Prometheus read both.

// A dashboard is what these tests read of one of Grafana
// (https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/).
type dashboard struct {
	SchemaVersion int
	Templating    struct {
		List []struct {
			Name, Type string
			Query      any
		}
	}
	Panels []struct {
		ID                       int
		Type, Title, Description string
		GridPos                  struct{ X, Y, W, H int }
		Datasource               struct{ Type, UID string }
		FieldConfig              struct{ Defaults struct{ Unit string } }
		Targets                  []struct{ Expr, LegendFormat string }
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal([]byte(readFile(t, "docs/grafana.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// An expression is PromQL, where it stands, and the labels of its result that are shown.
type expression struct {
	where, text string
	shown       []string
}

var legendLabel = regexp.MustCompile(`\{\{(\w+)\}\}`)

// expressions returns those of all panels, and those from which the variables get their values.
func (d *dashboard) expressions(t *testing.T) (panels, variables []expression) {
	t.Helper()
	for _, panel := range d.Panels {
		for _, target := range panel.Targets {
			panels = append(panels, expression{panel.Title, target.Expr, submatches(legendLabel, target.LegendFormat)})
		}
	}
	for _, variable := range d.Templating.List {
		query, ok := variable.Query.(map[string]any)
		if !ok { // the kind of a datasource
			continue
		}
		text, label, ok := strings.Cut(strings.TrimPrefix(query["query"].(string), "label_values("), ", ")
		if !ok {
			t.Errorf("the variable %s has the query %v", variable.Name, query)
		}
		variables = append(variables, expression{"$" + variable.Name, text, []string{strings.TrimSuffix(label, ")")}})
	}
	return panels, variables
}

// submatches returns what the first group of a pattern matches in text, wherever it does.
func submatches(pattern *regexp.Regexp, text string) (all []string) {
	for _, match := range pattern.FindAllStringSubmatch(text, -1) {
		all = append(all, match[1])
	}
	return all
}

var (
	alertExpr       = regexp.MustCompile(`\n {8}expr: (?:>-((?:\n {10}.*)+)|(.*))\n`)
	alertMembers    = regexp.MustCompile(`\n +(severity: |labels: \{ severity: |summary: "|description: ").`)
	annotationLabel = regexp.MustCompile(`\$labels\.(\w+)`)
)

// readAlerts returns the expressions of docs/alerts.yml, each with the alert's name as where it stands.
func readAlerts(t *testing.T) (all []expression) {
	t.Helper()
	for _, rule := range strings.Split(readFile(t, "docs/alerts.yml"), "\n      - alert: ")[1:] {
		name, _, _ := strings.Cut(rule, "\n")
		expr := alertExpr.FindStringSubmatch(rule)
		if expr == nil || len(alertMembers.FindAllString(rule, -1)) != 3 {
			t.Errorf("%s lacks an expression, a severity, a summary or a description", name)
			continue
		}
		text := strings.Join(strings.Fields(expr[1]+expr[2]), " ")
		all = append(all, expression{name, text, submatches(annotationLabel, rule)})
	}
	return all
}

// A selector is what selects series in PromQL: name{label="value", …}[range].
type selector struct {
	name     string
	matchers [][3]string // label, operator, value
	within   string      // the range, or ""
}

var (
	promToken    = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|[A-Za-z_]\w*|=~|!~|!=|\d[\w.]*|\S`)
	promName     = regexp.MustCompile(`^[A-Za-z_]`)
	promGrouping = []string{"by", "without", "on", "ignoring", "group_left", "group_right"}
	promSum      = regexp.MustCompile(`\b(?:sum|min|max|count)\(`) // of all groups
	promOperator = []string{"and", "or", "unless", "offset", "bool"}
)

// readPromQL returns the selectors of an expression, the labels by which it groups, and the strings that it gives to
// functions, labels among them.
func readPromQL(text string) (selectors []selector, grouped, strs []string) {
	tokens := append(promToken.FindAllString(text, -1), "", "", "")
	end := len(tokens) - 3
	for i := 0; i < end; i++ {
		switch token := tokens[i]; {
		case token[0] == '"':
			unquoted, _ := strconv.Unquote(token)
			strs = append(strs, unquoted)
		case token == "[":
			for i++; i < end && tokens[i] != "]"; i++ {
				selectors[len(selectors)-1].within += tokens[i]
			}
		case slices.Contains(promGrouping, token):
			for i++; i < end && tokens[i] != ")"; i++ {
				if promName.MatchString(tokens[i]) {
					grouped = append(grouped, tokens[i])
				}
			}
		case promName.MatchString(token) && !slices.Contains(promOperator, token) &&
			!slices.Contains([]string{"(", "by", "without"}, tokens[i+1]):
			s := selector{name: token}
			if tokens[i+1] == "{" {
				for i += 2; i < end && tokens[i] != "}"; i++ {
					if tokens[i] != "," {
						value, _ := strconv.Unquote(tokens[i+2])
						s.matchers = append(s.matchers, [3]string{tokens[i], tokens[i+1], value})
						i += 2
					}
				}
			}
			selectors = append(selectors, s)
		}
	}
	return selectors, grouped, strs
}

func TestReadPromQL(t *testing.T) {
	for text, want := range map[string]string{
		"time() - x": "[{x [] }] [] []",
		`sum by (a, b) (rate(x{c="}",d=~"$e"}[$__rate_interval])) / on (a) y and z{c!="f"} offset 1h`: "[" +
			"{x [[c = }] [d =~ $e]] $__rate_interval} {y [] } {z [[c != f]] }] [a b a] []",
		`label_replace(up, "class", "${1}xx", "", "") > 0.5`: "[{up [] }] [] [class ${1}xx  ]",
		`x{a="b"`: "[{x [[a = b]] }] [] []",
	} {
		if got := fmt.Sprint(readPromQL(text)); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

// exports are the samples on pages of metrics: the values of each label of each name. kinds are those of the families.
type exports struct {
	samples map[string]map[string]map[string]bool
	kinds   map[string]string
}

var (
	metricKind   = regexp.MustCompile(`(?m)^# TYPE (\w+) (\w+)$`)
	metricSample = regexp.MustCompile(`(?m)^(\w+)(\{.*\})? \S+$`)
	metricLabel  = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
)

func (e *exports) add(page string) {
	for _, match := range metricKind.FindAllStringSubmatch(page, -1) {
		e.kinds[match[1]] = match[2]
	}
	for _, match := range metricSample.FindAllStringSubmatch(page, -1) {
		labels := e.samples[match[1]]
		if labels == nil {
			labels = map[string]map[string]bool{"job": {"tollgate": true}, "instance": {}} // which Prometheus adds
			e.samples[match[1]] = labels
		}
		for _, label := range metricLabel.FindAllStringSubmatch(match[2], -1) {
			if labels[label[1]] == nil {
				labels[label[1]] = make(map[string]bool)
			}
			labels[label[1]][label[2]] = true
		}
	}
}

// kind returns that of the family of a sample.
func (e *exports) kind(sample string) string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if kind := e.kinds[strings.TrimSuffix(sample, suffix)]; kind == "histogram" {
			return kind
		}
	}
	return e.kinds[sample]
}

// readExports returns all that the program exports: of a Redis Cluster, which has what one server has and more, and when
// everything has happened once.
func readExports(t *testing.T) *exports {
	t.Helper()
	e := &exports{make(map[string]map[string]map[string]bool), make(map[string]string)}
	e.add("# TYPE up gauge\nup 1\n") // Prometheus exports it
	s := newService(t, "REDIS_URL="+redistest.SharedCluster(t).URL())
	e.add(s.admin(t, "GET", "/metrics", "").body)
	var patterns []string
	for _, route := range new(server).routes() {
		patterns = append(patterns, route.pattern)
	}
	m := newMetrics(patterns)
	for _, status := range append(statuses[:], 0) {
		for _, pattern := range append(patterns, "") {
			method, _ := routeOf(pattern)
			m.request(pattern, method, status, time.Second)
		}
		for _, endpoint := range []string{"e", noEndpoint} {
			outcome := &gateway.Outcome{Endpoint: endpoint, FirstByte: time.Second, Session: time.Second}
			m.gateway.count("t", outcome, status, time.Second)
		}
	}
	m.keyIssued("t", "g")
	for result := range cacheResults {
		m.cacheUsed("t", gateway.CacheResult(result))
	}
	for kind := range eventNames {
		for result := range eventResults {
			m.paymentEvent("t", stripe.Kind(kind), eventResult(result))
		}
	}
	page := new(telemetry.Page)
	m.write(page)
	e.add(page.String())
	return e
}

// check expects that there are the metrics, labels and values of an expression.
func (e *exports) check(t *testing.T, x expression) {
	t.Helper()
	selectors, grouped, made := readPromQL(x.text)
	if len(selectors) == 0 {
		t.Errorf("%s: no metric in %s", x.where, x.text)
	}
	for _, s := range selectors {
		labels := e.samples[s.name]
		if labels == nil {
			t.Errorf("%s: no metric is called %s", x.where, s.name)
			continue
		}
		for _, matcher := range s.matchers {
			if !hasValue(labels[matcher[0]], matcher) {
				t.Errorf("%s: no %s has a %s like %q", x.where, s.name, matcher[0], matcher[2])
			}
			for value := range labels[matcher[0]] {
				if short := strings.TrimPrefix(value, "/{tenantId}"); labels[matcher[0]][short] && matches(short, matcher) != matches(value, matcher) {
					t.Errorf("%s: only one of the routes %s and %s, of the default tenant, is like %q", x.where, value, short, matcher[2])
				}
			}
		}
		for _, label := range grouped {
			if labels[label] == nil && !slices.Contains(made, label) {
				t.Errorf("%s: %s has no label %s to group by", x.where, s.name, label)
			}
		}
		for _, label := range x.shown {
			if labels[label] == nil && len(grouped) == 0 {
				t.Errorf("%s: %s has no label %s to show", x.where, s.name, label)
			}
		}
	}
	for _, label := range x.shown {
		if (len(grouped) > 0 || promSum.MatchString(x.text)) && !slices.Contains(grouped, label) {
			t.Errorf("%s: the label %s is shown, and the groups are by %q", x.where, label, grouped)
		}
	}
}

// hasValue reports whether values has one that a matcher of PromQL names. A variable of the dashboard may be anything.
func hasValue(values map[string]bool, matcher [3]string) bool {
	if strings.HasPrefix(matcher[2], "$") {
		return values != nil
	}
	return slices.ContainsFunc(slices.Collect(maps.Keys(values)), func(value string) bool { return matches(value, matcher) })
}

// matches reports whether a matcher of PromQL names a value, to select it or to leave it out.
func matches(value string, matcher [3]string) bool {
	pattern := regexp.QuoteMeta(matcher[2])
	if strings.HasSuffix(matcher[1], "~") {
		pattern = matcher[2]
	}
	return regexp.MustCompile("^(?:" + pattern + ")$").MatchString(value)
}

// The metrics, labels and values in docs/grafana.json and docs/alerts.yml exist. The dashboard takes the rate of what
// grows only, over the interval that fits, and shows the rest as it is.
func TestDashboardMetrics(t *testing.T) {
	t.Parallel()
	e, d := readExports(t), readDashboard(t)
	panels, variables := d.expressions(t)
	alerts := readAlerts(t)
	if len(panels) < 40 || len(variables) < 3 || len(alerts) < 10 {
		t.Errorf("the dashboard has %d expressions and %d variables, and there are %d alerts",
			len(panels), len(variables), len(alerts))
	}
	for _, x := range slices.Concat(panels, variables, alerts) {
		e.check(t, x)
	}
	for _, x := range panels {
		selectors, _, _ := readPromQL(x.text)
		for _, s := range selectors {
			want := "$__rate_interval"
			if e.kind(s.name) == "gauge" {
				want = ""
			}
			if s.within != want {
				t.Errorf("%s: the range of %s, a %s, is %q, want %q", x.where, s.name, e.kind(s.name), s.within, want)
			}
		}
	}
}

// Grafana can import the dashboard from version 10 on, which has the version 38 of the format. Its panels say what they
// show, in which unit and of which Prometheus, and do not lie on one another. Its variables are declared.
func TestDashboardPanels(t *testing.T) {
	d := readDashboard(t)
	if d.SchemaVersion > 38 {
		t.Errorf("the version of the format is %d", d.SchemaVersion)
	}
	declared := map[string]bool{"__rate_interval": true}
	for _, variable := range d.Templating.List {
		declared[variable.Name] = true
	}
	taken, ids := make(map[[2]int]string), make(map[int]bool)
	for _, p := range d.Panels {
		if p.Title == "" || ids[p.ID] {
			t.Errorf("panel %d has the title %q, or another has its ID", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s lies on %q, or beyond the 24 columns", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 ||
			p.Datasource.Type != "prometheus" || p.Datasource.UID != "${datasource}" {
			t.Errorf("%s lacks a description, a unit, an expression or its datasource", p.Title)
		}
		for _, target := range p.Targets {
			if target.LegendFormat == "" {
				t.Errorf("%s: %s has no legend", p.Title, target.Expr)
			}
			for _, name := range submatches(regexp.MustCompile(`\$(\w+)`), target.Expr) {
				if !declared[name] {
					t.Errorf("%s: no variable is called %s", p.Title, name)
				}
			}
		}
	}
}
