package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// restoredRedis is a Redis with the directory and the settings that `make run` gives it, below a directory of the test.
type restoredRedis struct {
	dir, port string
}

// run runs commands of docs/operations.md.
func (r restoredRedis) run(t *testing.T, commands string) {
	t.Helper()
	cmd := exec.Command("bash", "-e", "-c", strings.NewReplacer(
		"redis-cli ", "redis-cli -p "+r.port+" ", "6379", r.port, "sleep 1", "sleep 0.01",
	).Replace(commands))
	cmd.Dir = r.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s\nprints\n%s\n%v", commands, out, err)
	}
}

// start starts Redis and returns a connection to it, once its data is loaded.
func (r restoredRedis) start(t *testing.T) redis.Conn {
	t.Helper()
	cmd := exec.Command("redis-server", "--port", r.port, "--bind", "127.0.0.1", "--dir", ".redis/"+r.port,
		"--appendonly", "yes", "--maxmemory-policy", "noeviction")
	cmd.Dir = r.dir
	ended := start(t, cmd)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	return r.dial(t)
}

func (r restoredRedis) dial(t *testing.T) (c redis.Conn) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() (err error) {
		if c, err = redis.Dial("tcp", "127.0.0.1:"+r.port); err == nil {
			_, err = c.Do("PING")
		}
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// stop stops Redis, which saves a dump.rdb then, as any Redis does that has written.
func (r restoredRedis) stop(t *testing.T, c redis.Conn) {
	t.Helper()
	_, _ = c.Do("SHUTDOWN", "SAVE")
	r.wantStopped(t)
}

// wantStopped waits until no Redis runs.
func (r restoredRedis) wantStopped(t *testing.T) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error {
		c, err := redis.Dial("tcp", "127.0.0.1:"+r.port)
		if err == nil {
			c.Close()
			return fmt.Errorf("Redis still runs")
		}
		return nil
	})
}

// The commands of docs/operations.md back up Redis while it serves, and restore all of it, in a new directory and over
// what another Redis has left there.
func TestRestoreBackup(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Backup\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var blocks []string
	for _, match := range regexp.MustCompile("(?s)```text\n(.*?)```").FindAllStringSubmatch(section, -1) {
		blocks = append(blocks, match[1])
	}
	if len(blocks) != 4 {
		t.Fatalf("there are %d blocks, want 4: copy and restore appendonlydir, copy and restore dump.rdb", len(blocks))
	}
	for i, name := range []string{"appendonlydir", "dump.rdb"} {
		backup, restore := blocks[2*i], blocks[2*i+1]
		for _, fresh := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", new directory: ", fresh), func(t *testing.T) {
				t.Parallel()
				port, err := redistest.FreePort()
				if err != nil {
					t.Fatal(err)
				}
				r := restoredRedis{dir: t.TempDir(), port: fmt.Sprint(port)}
				data := filepath.Join(r.dir, ".redis", r.port)
				for _, dir := range []string{data, filepath.Join(r.dir, "backup")} {
					if err := os.MkdirAll(dir, 0o700); err != nil {
						t.Fatal(err)
					}
				}
				c := r.start(t)
				url := "REDIS_URL=redis://127.0.0.1:" + r.port
				s := newService(t, url)
				key := s.login(t, "abc")
				s.consume(t, "abc", key, "").want(t, 200, `{"tokensLeft":99}`)
				redistest.MustDo(t, c, "EVAL", "for i = 1, 20000 do redis.call('SET', 'filler:' .. i, i) end", 0)
				redistest.MustDo(t, c, "BGREWRITEAOF") // which a copy must wait for
				s.stop()
				r.run(t, backup)
				keys := redistest.MustDo(t, c, "DBSIZE")
				redistest.MustDo(t, c, "SET", "since the backup", "x")
				r.stop(t, c)
				if fresh {
					err = os.RemoveAll(data)
				}
				if err != nil {
					t.Fatal(err)
				}

				r.run(t, restore)
				r.wantStopped(t)
				c = r.start(t)
				if got := redistest.MustDo(t, c, "DBSIZE"); got != keys {
					t.Errorf("there are %d keys, want %d", got, keys)
				}
				s = newService(t, url)
				s.consume(t, "abc", key, "").want(t, 200, `{"tokensLeft":98}`)
				if s.log.Count(emptyWarning) != 0 {
					t.Errorf("the log is\n%s", s.log)
				}
				s.stop()
				r.stop(t, c) // once more: it lasts
				c = r.start(t)
				if got := redistest.MustDo(t, c, "DBSIZE"); got != keys {
					t.Errorf("after another start there are %d keys, want %d", got, keys)
				}
			})
		}
	}
}
