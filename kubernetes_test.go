package main

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tollgate/internal/options"
)

// yamlReader reads the YAML of docs/kubernetes.md: block maps and lists, scalars, and comments.
type yamlReader struct {
	lines []string // without comments and blank ones
}

func newYAMLReader(text string) *yamlReader {
	r := new(yamlReader)
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(strings.TrimRight(line, "\n"), " #")
		if strings.TrimSpace(line) != "" {
			r.lines = append(r.lines, strings.TrimRight(line, " "))
		}
	}
	return r
}

func indentOf(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }

// value reads the value that begins with the next line: a map[string]any, a []any or a string.
func (r *yamlReader) value() any {
	indent := indentOf(r.lines[0])
	if strings.HasPrefix(r.lines[0][indent:], "- ") {
		var list []any
		for len(r.lines) > 0 && indentOf(r.lines[0]) == indent && strings.HasPrefix(r.lines[0][indent:], "- ") {
			r.lines[0] = strings.Replace(r.lines[0], "- ", "  ", 1)
			list = append(list, r.value())
		}
		return list
	}
	members := make(map[string]any)
	for len(r.lines) > 0 && indentOf(r.lines[0]) == indent {
		name, scalar, isMember := strings.Cut(strings.TrimSpace(r.lines[0]), ":")
		r.lines = r.lines[1:]
		switch {
		case !isMember:
			panic(fmt.Sprintf("%q is no member", name))
		case scalar != "":
			members[name] = strings.Trim(strings.TrimSpace(scalar), `"`)
		default:
			members[name] = r.value()
		}
	}
	return members
}

// at returns the string at a path of names and indices in a value that yamlReader has read, or "".
func at(value any, path ...any) string {
	text, _ := walk(value, path...).(string)
	return text
}

func walk(value any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			members, _ := value.(map[string]any)
			value = members[step]
		case int:
			list, _ := value.([]any)
			if step >= len(list) {
				return nil
			}
			value = list[step]
		}
	}
	return value
}

// kubernetesManifest returns the objects of the manifest in docs/kubernetes.md by their kinds.
func kubernetesManifest(t *testing.T) map[string]any {
	t.Helper()
	objects := make(map[string]any)
	for _, block := range docBlocks(t, "docs/kubernetes.md") {
		if block.language == "yaml" {
			for part := range strings.SplitSeq(block.text, "\n---\n") {
				object := newYAMLReader(part).value()
				objects[at(object, "kind")] = object
			}
		}
	}
	if kinds := slices.Sorted(maps.Keys(objects)); !slices.Equal(kinds, []string{"Deployment", "PodDisruptionBudget", "Service"}) {
		t.Fatalf("the manifest has %q", kinds)
	}
	return objects
}

// The variables of the manifest are settings, with values that the program accepts.
func TestKubernetesSettings(t *testing.T) {
	container := walk(kubernetesManifest(t)["Deployment"], "spec", "template", "spec", "containers", 0)
	s := new(settings)
	table := make(map[string]options.Option)
	for _, o := range s.allOptions() {
		table[o.Env] = o
	}
	runtimes := []string{"GOGC", "GOMEMLIMIT"}
	page := readFile(t, "docs/kubernetes.md")
	variables, _ := walk(container, "env").([]any)
	for _, variable := range variables {
		name, value := at(variable, "name"), at(variable, "value")
		o, known := table[name]
		if file, ok := strings.CutPrefix(value, at(container, "volumeMounts", 0, "mountPath")+"/"); ok || value == "" {
			if file = cmp.Or(file, at(variable, "valueFrom", "secretKeyRef", "key")); !strings.Contains(page, "--from-file="+file) {
				t.Errorf("%s is not in the secret: %q", name, file)
			}
		}
		switch {
		case !known && !slices.Contains(runtimes, name):
			t.Errorf("%s is no setting", name)
		case known && !o.SecretFile && value != "":
			if err := o.Set(value); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if len(variables) < 10 {
		t.Errorf("%d variables were found", len(variables))
	}
}

// The manifest's ports, paths, labels, user and times fit each other and the program.
func TestKubernetesManifest(t *testing.T) {
	objects := kubernetesManifest(t)
	deployment, service := objects["Deployment"], objects["Service"]
	template := walk(deployment, "spec", "template")
	container := walk(template, "spec", "containers", 0)
	env := make(map[string]string)
	variables, _ := walk(container, "env").([]any)
	for _, variable := range variables {
		env[at(variable, "name")] = at(variable, "value")
	}
	same := func(what, got, want string) {
		t.Helper()
		if got != want || got == "" {
			t.Errorf("%s is %q, want %q", what, got, want)
		}
	}
	_, port, _ := net.SplitHostPort(env["ADDR"])
	same("containerPort", at(container, "ports", 0, "containerPort"), port)
	same("the Service's targetPort", at(service, "spec", "ports", 0, "targetPort"), at(container, "ports", 0, "name"))
	label := at(template, "metadata", "labels", "app")
	same("the Deployment's selector", at(deployment, "spec", "selector", "matchLabels", "app"), label)
	same("the Service's selector", at(service, "spec", "selector", "app"), label)
	same("the budget's selector", at(objects["PodDisruptionBudget"], "spec", "selector", "matchLabels", "app"), label)
	same("the secret", at(template, "spec", "volumes", 0, "secret", "secretName"), "tollgate")
	same("the volume", at(container, "volumeMounts", 0, "name"), at(template, "spec", "volumes", 0, "name"))
	if user := at(template, "spec", "securityContext", "runAsUser"); !strings.Contains(readFile(t, "Dockerfile"), "\nUSER "+user+":") {
		t.Errorf("runAsUser is %s, not the image's user", user)
	}
	for probe, path := range map[string]string{"readinessProbe": "/readyz", "livenessProbe": "/healthz"} {
		same(probe, at(container, probe, "httpGet", "path"), path)
		same("the port of "+probe, at(container, probe, "httpGet", "port"), at(container, "ports", 0, "name"))
		if !slices.ContainsFunc(new(server).routes(), func(r route) bool { return r.pattern == "GET "+path }) {
			t.Errorf("%s: there is no route %s", probe, path)
		}
		if seconds, _ := strconv.Atoi(at(container, probe, "timeoutSeconds")); time.Duration(seconds)*time.Second <= 2*time.Second {
			t.Errorf("%s waits %d s, and a response may take 2 s", probe, seconds)
		}
	}
	replicas, _ := strconv.Atoi(at(deployment, "spec", "replicas"))
	if least, _ := strconv.Atoi(at(objects["PodDisruptionBudget"], "spec", "minAvailable")); least < 1 || least >= replicas {
		t.Errorf("%d of %d pods must be available", least, replicas)
	}
	grace, _ := strconv.Atoi(at(template, "spec", "terminationGracePeriodSeconds"))
	needed := 10 * time.Second // to charge what was cut, and to end
	for _, name := range []string{"SHUTDOWN_DELAY", "DRAIN_TIMEOUT"} {
		d, err := time.ParseDuration(env[name])
		if err != nil || d <= 0 {
			t.Errorf("%s: %v", name, err)
		}
		needed += d
	}
	if time.Duration(grace)*time.Second < needed {
		t.Errorf("terminationGracePeriodSeconds is %d, and the process may take %s to end", grace, needed)
	}
	if idle, err := time.ParseDuration(env["IDLE_TIMEOUT"]); err != nil || idle <= 600*time.Second {
		t.Errorf("IDLE_TIMEOUT is %s, %v, and balancers keep connections for up to 600 s", idle, err)
	}
}
