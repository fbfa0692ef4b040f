package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

// sentinelGroup is a master with replicas, and Sentinels that watch it.
type sentinelGroup struct {
	servers   []*redisServer // of which one is the master
	sentinels []*sentinelProcess
	password  string // of the Sentinels
}

type sentinelProcess struct {
	address string
	cmd     *exec.Cmd
}

const masterName = "main"

// newSentinelGroup starts a master with two replicas and three Sentinels, which ask for that password if it is not "".
func newSentinelGroup(t testing.TB, password string) *sentinelGroup {
	t.Helper()
	g := &sentinelGroup{password: password}
	for range 3 {
		args := []string{"--appendonly", "no", "--repl-diskless-sync-delay", "0"}
		if len(g.servers) > 0 {
			args = append(args, "--replicaof", "127.0.0.1 "+strconv.Itoa(g.servers[0].port))
		}
		g.servers = append(g.servers, newRedis(t, args...))
	}
	for range 3 {
		g.sentinels = append(g.sentinels, newSentinel(t, g.servers[0].port, password))
	}
	eventually(t, 20*time.Second, func() error { return g.check(t) })
	return g
}

// newSentinel starts a Sentinel that watches the master at a port.
func newSentinel(t testing.TB, masterPort int, password string) *sentinelProcess {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`port %d
bind 127.0.0.1
sentinel monitor %[2]s 127.0.0.1 %d 2
sentinel down-after-milliseconds %[2]s 1000
sentinel failover-timeout %[2]s 1000
`, port, masterName, masterPort)
	if password != "" {
		config += "requirepass " + password + "\nsentinel sentinel-pass " + password + "\n"
	}
	path := filepath.Join(t.TempDir(), "sentinel.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &sentinelProcess{address: fmt.Sprintf("127.0.0.1:%d", port), cmd: exec.Command("redis-server", path, "--sentinel")}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	eventually(t, 20*time.Second, func() error {
		_, err := p.info(password)
		return err
	})
	return p
}

func (p *sentinelProcess) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *sentinelProcess) alive() bool { return p.cmd.ProcessState == nil }

// check returns an error unless the Sentinels name one master and know each other and both replicas, which are in sync.
func (g *sentinelGroup) check(t testing.TB) error {
	master := g.master(t)
	for _, p := range g.sentinels {
		if !p.alive() {
			continue
		}
		info, err := p.info(g.password)
		if err != nil {
			return err
		}
		if g.masterOf(t, p) != master || !strings.Contains(info, "status=ok") || !strings.Contains(info, "slaves=2,sentinels=3") {
			return errors.New(info)
		}
	}
	for _, r := range g.servers {
		replication := r.string(t, "INFO", "replication")
		if r == master && redisField(replication, "role") == "master" {
			continue
		}
		if redisField(replication, "master_port") != strconv.Itoa(master.port) ||
			redisField(replication, "master_link_status") != "up" {
			return errors.New("a replica is not in sync")
		}
	}
	return nil
}

func (p *sentinelProcess) info(password string) (string, error) {
	c, err := redis.Dial("tcp", p.address, redis.DialPassword(password))
	if err != nil {
		return "", err
	}
	defer c.Close()
	return redis.String(c.Do("INFO", "sentinel"))
}

// url returns the URL for the services under test.
func (g *sentinelGroup) url() string {
	var addresses []string
	for _, p := range g.sentinels {
		addresses = append(addresses, p.address)
	}
	return fmt.Sprintf("redis-sentinel://tollgate:%s@%s/%s", testRedisPassword, strings.Join(addresses, ","), masterName)
}

// master returns the master that the first Sentinel which is up names.
func (g *sentinelGroup) master(t testing.TB) *redisServer {
	t.Helper()
	return g.masterOf(t, g.sentinels[slices.IndexFunc(g.sentinels, (*sentinelProcess).alive)])
}

// masterOf returns the master that a Sentinel names.
func (g *sentinelGroup) masterOf(t testing.TB, p *sentinelProcess) *redisServer {
	t.Helper()
	c, err := redis.Dial("tcp", p.address, redis.DialPassword(g.password))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	address, err := redis.Strings(mustDo(t, c, "SENTINEL", "get-master-addr-by-name", masterName), nil)
	if err != nil {
		t.Fatal(err)
	}
	return g.servers[slices.IndexFunc(g.servers, func(r *redisServer) bool { return strconv.Itoa(r.port) == address[1] })]
}

// promoted waits until a Sentinel names another master than old.
func (g *sentinelGroup) promoted(t testing.TB, old *redisServer) (promoted *redisServer) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		for _, p := range g.sentinels {
			if !p.alive() {
				continue
			}
			if promoted = g.masterOf(t, p); promoted != old {
				return nil
			}
		}
		return errors.New("no replica was promoted")
	})
	return promoted
}

// heal makes old a replica of promoted, as the Sentinels would do after ten seconds, and waits until the group is complete.
func (g *sentinelGroup) heal(t testing.TB, old, promoted *redisServer) {
	t.Helper()
	old.do(t, "REPLICAOF", "127.0.0.1", promoted.port)
	eventually(t, 30*time.Second, func() error { return g.check(t) })
}

// failover asks the first Sentinel for a failover.
func (g *sentinelGroup) failover() error {
	c, err := redis.Dial("tcp", g.sentinels[0].address, redis.DialPassword(g.password))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Do("SENTINEL", "FAILOVER", masterName)
	return err
}
