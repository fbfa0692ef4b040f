//go:build integration

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

const maxReadmeLines = 180

// docFiles returns the paths of README.md and of everything in docs, in the order in which README.md links them.
func docFiles(t *testing.T) []string {
	t.Helper()
	files := []string{"README.md"}
	for _, match := range docLink.FindAllStringSubmatch(readFile(t, "README.md"), -1) {
		path, _, _ := strings.Cut(match[1], "#")
		if strings.HasPrefix(path, "docs/") && filepath.Ext(path) == ".md" && !slices.Contains(files, path) {
			files = append(files, path)
		}
	}
	all, err := filepath.Glob("docs/*.md")
	if err != nil || len(all) != len(files)-1 {
		t.Fatalf("README.md links %q, docs has %q, %v", files[1:], all, err)
	}
	return files
}

// docCommand is a block of commands, with what the file says they print.
type docCommand struct {
	docBlock
	output string
}

// docCommands returns the blocks that are meant to be run: those in sh, each with the block of output that may follow.
func docCommands(t *testing.T, file string) (commands []docCommand) {
	t.Helper()
	afterCommand := false
	for _, block := range docBlocks(t, file) {
		switch block.language {
		case "sh":
			commands, afterCommand = append(commands, docCommand{docBlock: block}), true
			continue
		case "", "json", "http":
			if !afterCommand {
				t.Errorf("%s:%d: no block of commands prints this", file, block.line)
				continue
			}
			commands[len(commands)-1].output = block.text
		case "text", "nginx", "caddyfile", "yaml", "toml", "python", "typescript", "html":
		default:
			t.Errorf("%s:%d: unknown language %q", file, block.line, block.language)
		}
		afterCommand = false
	}
	return commands
}

// docService is tollgate as `make run` starts it, with a Redis of its own.
type docService struct {
	address   string // of tollgate
	redisPort int
}

// startDocService runs command, which is that of the README, on free ports until the test ends.
func startDocService(t *testing.T, command string) docService {
	t.Helper()
	var ports [2]int
	for i := range ports {
		var err error
		if ports[i], err = redistest.FreePort(); err != nil {
			t.Fatal(err)
		}
	}
	s := docService{address: fmt.Sprintf("127.0.0.1:%d", ports[0]), redisPort: ports[1]}
	cmd := exec.Command("sh", "-c", command)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool { return strings.HasPrefix(variable, "MAKE") })
	cmd.Env = append(cmd.Env, "ADDR="+s.address, fmt.Sprintf("REDIS_URL=redis://localhost:%d", s.redisPort))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a terminal does
	out := new(telemetrytest.Log)
	cmd.Stdout, cmd.Stderr = out, out
	done := start(t, cmd)
	t.Cleanup(func() { s.stop(t, cmd.Process.Pid, done, out) })
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if response, err := http.Get("http://" + s.address + "/healthz"); err == nil {
			response.Body.Close()
			return s
		}
		select {
		case <-done:
			t.Fatalf("%s ended:\n%s", command, out)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen:\n%s", command, out)
		}
	}
}

// stop does what Ctrl-C does, and expects a clean end of tollgate and of its Redis.
func (s docService) stop(t *testing.T, pid int, done <-chan struct{}, out *telemetrytest.Log) {
	_ = syscall.Kill(-pid, syscall.SIGINT)
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Error("it does not end")
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
	text := out.String()
	if !strings.HasSuffix(text, "[INFO] Stopped\n") || strings.Contains(text, "***") || strings.Contains(text, "[ERROR]") {
		t.Errorf("it ended with:\n%s", text)
	}
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.redisPort)); err == nil {
		c.Close()
		t.Error("its Redis still runs")
	}
	os.RemoveAll(filepath.Join(".redis", fmt.Sprint(s.redisPort)))
}

// run.sh stops tollgate and its Redis after each signal that may end it, and exits with the status of tollgate.
func TestIntegrationRunScript(t *testing.T) {
	for _, test := range []struct {
		name, address string
		signal        syscall.Signal
		status        int
	}{
		{"SIGINT", "127.0.0.1:0", syscall.SIGINT, 0},
		{"SIGTERM", "127.0.0.1:0", syscall.SIGTERM, 0},
		{"SIGHUP", "127.0.0.1:0", syscall.SIGHUP, 0}, // the terminal was closed
		{"bad setting", "nonsense", 0, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			port, err := redistest.FreePort()
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(".redis", fmt.Sprint(port))
			defer os.RemoveAll(dir)
			cmd := exec.Command("./run.sh")
			cmd.Env = append(os.Environ(), "ADDR="+test.address, fmt.Sprintf("REDIS_URL=redis://127.0.0.1:%d/3", port))
			out := new(telemetrytest.Log)
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if test.signal != 0 {
				waittest.Eventually(t, 3*time.Minute, func() error {
					if out.Count("[INFO] Listening on ") == 0 {
						return fmt.Errorf("it does not listen:\n%s", out)
					}
					return nil
				})
				_ = cmd.Process.Signal(test.signal)
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != test.status {
				t.Errorf("exit status %d, want %d:\n%s", got, test.status, out)
			}
			if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
				c.Close()
				t.Error("its Redis still runs")
			}
			if _, err := os.Stat(filepath.Join(dir, "appendonlydir")); err != nil {
				t.Error(err)
			}
		})
	}
}

const docStart = "ADMIN_TOKEN=change-me-please make run"

// Every command in the README and in docs prints what they say: those of each page in a service of its own, and those of
// all pages, one after the other, in one.
func TestIntegrationDocs(t *testing.T) {
	if !strings.Contains(readFile(t, "README.md"), "```sh\n"+docStart+"\n```") {
		t.Fatalf("the README does not begin with %s", docStart)
	}
	files := slices.DeleteFunc(docFiles(t), func(file string) bool { return len(runCommands(t, file)) == 0 })
	for _, file := range files {
		t.Run(file, func(t *testing.T) { startDocService(t, docStart).wantDoc(t, file) })
	}
	t.Run("one after the other", func(t *testing.T) {
		s := startDocService(t, docStart)
		for _, file := range files {
			s.wantDoc(t, file)
		}
	})
}

// runCommands returns the commands of a file that run while the service of the README does.
func runCommands(t *testing.T, file string) []docCommand {
	t.Helper()
	return slices.DeleteFunc(docCommands(t, file), func(c docCommand) bool { return c.text == docStart+"\n" })
}

// wantDoc runs the commands of a file, with a stand-in for their providers, and expects the output that the file shows.
func (s docService) wantDoc(t *testing.T, file string) {
	t.Helper()
	p := providertest.New(t)
	p.On("", providertest.Conduct{Content: "Hello! How can I help you?", Input: 9, Output: 10})
	commands := runCommands(t, file)
	for i, got := range s.runDoc(t, commands, p) {
		want := commands[i].output
		if !docPattern(want).MatchString(normalizeDoc(got)) {
			t.Errorf("%s:%d:\n%s\nprints\n%s\nwant\n%s", file, commands[i].line, commands[i].text, got, want)
		}
	}
}

// runDoc runs the commands in one shell, in an empty directory, and returns what each of them prints. The stand-in p is
// in the place of the providers that they name, and ports are free ones.
func (s docService) runDoc(t *testing.T, commands []docCommand, p *providertest.Provider) []string {
	t.Helper()
	const end = "\x1e\n"
	var script strings.Builder
	for _, c := range commands {
		script.WriteString(c.text + "printf '\\036\\n'\n")
	}
	bin, err := filepath.Abs(".bin")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(
		"localhost:8080", s.address, "docs/examples/", filepath.Dir(bin)+"/docs/examples/", ".bin/", bin+"/",
		"redis-cli ", fmt.Sprintf("redis-cli -p %d ", s.redisPort),
		"https://api.openai.com", p.URL, "https://api.anthropic.com", p.URL,
	).Replace(freePorts(t, script.String()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), fmt.Sprintf("REDIS_URL=redis://localhost:%d", s.redisPort),
		"OPENAI_API_KEY="+providertest.Key, "ANTHROPIC_API_KEY="+providertest.Key)
	cmd.Stdin = strings.NewReader(text)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Errorf("%v: %s\nafter it had printed\n%s", err, &stderr, out)
	}
	got := strings.Split(strings.ReplaceAll(string(out), "\r", ""), end)
	if len(got) != len(commands)+1 {
		t.Fatalf("%d blocks ran, want %d", len(got)-1, len(commands))
	}
	return got[:len(commands)]
}

// freePorts puts a free port in the place of each port in script that the service of the README does not have. Redis
// servers that still listen on these when the test ends, since it has failed, are stopped.
func freePorts(t *testing.T, script string) string {
	t.Helper()
	free := make(map[string]string)
	return regexp.MustCompile(`\b(808[1-9]|809\d|70\d\d)\b`).ReplaceAllStringFunc(script, func(port string) string {
		if free[port] == "" {
			n, err := redistest.FreePort()
			// A cluster's bus is 10,000 above: let it be above all that FreePort returns, and below what systems give.
			for err == nil && (n < 22_000 || n > 22_700) {
				n, err = redistest.FreePort()
			}
			if err != nil {
				t.Fatal(err)
			}
			free[port] = strconv.Itoa(n)
			t.Cleanup(func() {
				if c, err := redis.Dial("tcp", "127.0.0.1:"+free[port], redis.DialReadTimeout(time.Second)); err == nil {
					_, _ = c.Do("SHUTDOWN", "NOSAVE")
					c.Close()
				}
			})
		}
		return free[port]
	})
}

// What differs from run to run, and what stands for it.
var docVariables = []struct {
	pattern *regexp.Regexp
	name    string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`), "<uuid>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`), "<time>"},
	{regexp.MustCompile(`"etag":"[0-9a-f]+…?"`), `"etag":"<etag>"`},
	{regexp.MustCompile(`"savedBy":"[0-9a-f]{8}"`), `"savedBy":"<token>"`},
	{regexp.MustCompile(`"id":"[0-9a-f]{8}"`), `"id":"<token>"`},
	{regexp.MustCompile(`"latencyMs":\d+`), `"latencyMs":<ms>`},
	{regexp.MustCompile(`(RateLimit: .*;t=)\d+`), "${1}<seconds>"},
}

func normalizeDoc(text string) string {
	for _, v := range docVariables {
		text = v.pattern.ReplaceAllString(text, v.name)
	}
	return text
}

// docPattern matches an output, in which a line … stands for any number of lines, and a … in a line for any text.
func docPattern(output string) *regexp.Regexp {
	var pattern strings.Builder
	pattern.WriteString("^")
	for line := range strings.Lines(normalizeDoc(output)) {
		if line == "…\n" {
			pattern.WriteString(`(?:.*\n)*?`)
		} else {
			pattern.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*?"))
		}
	}
	return regexp.MustCompile(pattern.String() + "$")
}

func TestIntegrationReadmeLength(t *testing.T) {
	if n := strings.Count(readFile(t, "README.md"), "\n"); n > maxReadmeLines {
		t.Errorf("README.md has %d lines, want %d at most", n, maxReadmeLines)
	}
}

var (
	docLink    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	docHeading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInSlug  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// Every relative link leads to a file, and to a heading in it.
func TestIntegrationDocsLinks(t *testing.T) {
	links := 0
	for _, file := range docFiles(t) {
		for _, match := range docLink.FindAllStringSubmatch(readFile(t, file), -1) {
			target, heading, _ := strings.Cut(match[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			links++
			path := file
			if target != "" {
				path = filepath.Join(filepath.Dir(file), target)
			}
			content, err := os.ReadFile(path)
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			if heading != "" && !slices.Contains(headingSlugs(string(content)), heading) {
				t.Errorf("%s: %s has no heading #%s", file, path, heading)
			}
		}
	}
	if links < 10 {
		t.Errorf("only %d links were found", links)
	}
}

// headingSlugs returns the names by which links refer to the headings of a Markdown text.
func headingSlugs(text string) (slugs []string) {
	for _, match := range docHeading.FindAllStringSubmatch(text, -1) {
		slug := notInSlug.ReplaceAllString(strings.ToLower(match[1]), "")
		slugs = append(slugs, strings.ReplaceAll(slug, " ", "-"))
	}
	return slugs
}

// The line for Redis's ACL in docs has the rules of redis.acl.
func TestIntegrationDocsACL(t *testing.T) {
	rules := strings.Fields(readFile(t, "redis.acl"))
	var found []string
	for line := range strings.Lines(readFile(t, "docs/operations.md")) {
		if rest, ok := strings.CutPrefix(line, "user tollgate on >PASSWORD "); ok {
			found = append(found, rest)
		}
	}
	if len(found) != 1 || !slices.Equal(strings.Fields(found[0]), rules) {
		t.Errorf("docs/operations.md has %q, want one line with %q", found, rules)
	}
}

// The command that docker-compose.yml gives to the image of Redis starts a server with the user of redis.acl. The
// image's entrypoint is not here; it runs its arguments.
func TestIntegrationComposeRedis(t *testing.T) {
	compose := readFile(t, "docker-compose.yml")
	if !strings.Contains(compose, `"./redis.acl:/redis.acl:ro"`) {
		t.Error("redis.acl is not mounted")
	}
	_, script, found := strings.Cut(compose, "- sh\n      - -c\n      - |\n")
	script, _, ended := strings.Cut(script, "\n    environment:")
	if !found || !ended || !strings.Contains(script, "/redis.acl") {
		t.Fatalf("no command with /redis.acl in\n%s", compose)
	}
	rules, err := filepath.Abs("redis.acl")
	if err != nil {
		t.Fatal(err)
	}
	script = strings.NewReplacer("$$", "$", "/redis.acl", rules).Replace(script)
	port, err := redistest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	entrypoint := "#!/bin/sh\nprintf '%s\\n' \"$@\" > arguments\n" +
		fmt.Sprintf("exec \"$@\" --port %d --bind 127.0.0.1\n", port)
	if err := os.WriteFile(filepath.Join(dir, "docker-entrypoint.sh"), []byte(entrypoint), 0o700); err != nil {
		t.Fatal(err)
	}
	const password = `p*'"$x`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "REDIS_PASSWORD="+password)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	wantComposeUser(t, fmt.Sprintf("127.0.0.1:%d", port), password)
	_, user, _ := strings.Cut(readFile(t, filepath.Join(dir, "arguments")), "--user\ntollgate\non\n>"+password+"\n")
	if got, want := strings.Fields(user), strings.Fields(readFile(t, rules)); !slices.Equal(got, want) {
		t.Errorf("the user has %q, want %q", got, want)
	}
}

// wantComposeUser waits until tollgate can log in to the Redis at address, and expects that nobody else can.
func wantComposeUser(t *testing.T, address, password string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := redis.Dial("tcp", address, redis.DialUsername("tollgate"), redis.DialPassword(password))
		if err == nil {
			_, err = c.Do("PING")
			c.Close()
		}
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	c, err := redis.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Do("PING"); err == nil || !strings.HasPrefix(err.Error(), "NOAUTH") {
		t.Errorf("without a password PING returns %v", err)
	}
}

// docs/operations.md lists every metric, and no other.
func TestIntegrationDocsMetrics(t *testing.T) {
	page := newService(t).do(t, "GET", "/metrics", "", bearer(testAdminToken)).body
	names := map[string]bool{"redis_slots_unowned": true} // of a cluster only
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(page, -1) {
		if !strings.HasPrefix(match[1], "go_") && !strings.HasPrefix(match[1], "process_") {
			names[match[1]] = true
		}
	}
	_, table, _ := strings.Cut(readFile(t, "docs/operations.md"), "\n## Metrics\n")
	table, _, _ = strings.Cut(table, "\n## ")
	listed := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*?`) \\|").FindAllStringSubmatch(table, -1) {
		for _, match := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(row[1], -1) {
			listed[match[1]] = true
		}
	}
	wantSameNames(t, names, listed)
}

// docs/configuration.md lists every flag, and no other.
func TestIntegrationDocsFlags(t *testing.T) {
	var usage bytes.Buffer
	if err := run(t.Context(), nil, []string{"-h"}, noEnvironment, &usage, new(telemetrytest.Log).Logger()); err != nil {
		t.Fatal(err)
	}
	names, listed := make(map[string]bool), make(map[string]bool)
	for _, match := range regexp.MustCompile(`(?m)^  -(\S+)`).FindAllStringSubmatch(usage.String(), -1) {
		names[match[1]] = true
	}
	rows := regexp.MustCompile("(?m)^\\|[^|]*\\| `-(.*?)` \\|")
	for _, match := range rows.FindAllStringSubmatch(readFile(t, "docs/configuration.md"), -1) {
		listed[match[1]] = true
	}
	wantSameNames(t, names, listed)
}
