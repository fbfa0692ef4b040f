package redistest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/waittest"
)

// MasterName is the name by which Sentinels know their master.
const MasterName = "main"

// Sentinels is a master with two replicas, and three Sentinels that watch it.
type Sentinels struct {
	Nodes   []*Sentinel // in the order of the URL
	servers []*Server   // one of which is the master
}

// Sentinel is one process.
type Sentinel struct {
	Address  string // host:port
	password string
	cmd      *exec.Cmd
}

// NewSentinels starts Sentinels with their servers, until the test ends. The Sentinels ask for a password unless it is
// "". They take a master for dead that is silent for a second.
func NewSentinels(t testing.TB, password string) *Sentinels {
	t.Helper()
	g := new(Sentinels)
	for range 3 {
		args := []string{"--appendonly", "no", "--repl-diskless-sync-delay", "0"}
		if len(g.servers) > 0 {
			args = append(args, "--replicaof", "127.0.0.1 "+strconv.Itoa(g.servers[0].Port))
		}
		g.servers = append(g.servers, New(t, args...))
	}
	for range 3 {
		g.Nodes = append(g.Nodes, startSentinel(t, g.servers[0].Port, password))
	}
	waittest.Eventually(t, 20*time.Second, func() error { return g.check(t) })
	return g
}

// NewSentinel starts a Sentinel without a password, until the test ends. It watches the server at a port as the master,
// with a quorum of two. The lines are added to its configuration.
func NewSentinel(t testing.TB, masterPort int, lines ...string) *Sentinel {
	t.Helper()
	return startSentinel(t, masterPort, "", lines...)
}

// startSentinel does what NewSentinel does, with a password unless that is "".
func startSentinel(t testing.TB, masterPort int, password string, lines ...string) *Sentinel {
	t.Helper()
	config := strings.Join(append(lines, ""), "\n") + fmt.Sprintf(`port %%d
sentinel monitor %[1]s 127.0.0.1 %[2]d 2
sentinel down-after-milliseconds %[1]s 1000
sentinel failover-timeout %[1]s 1000
`, MasterName, masterPort)
	if password != "" {
		config += "requirepass " + password + "\nsentinel sentinel-pass " + password + "\n"
	}
	p := runSentinel(t, config)
	p.password = password
	waittest.Eventually(t, 20*time.Second, func() error {
		_, err := p.info()
		return err
	})
	return p
}

// runSentinel starts a Sentinel until the test ends. Its config has %d where its port belongs.
func runSentinel(t testing.TB, config string) *Sentinel {
	t.Helper()
	port, err := FreePort()
	if err != nil {
		t.Fatal(err)
	}
	config = fmt.Sprintf(config, port) + "bind 127.0.0.1\n"
	path := filepath.Join(t.TempDir(), "sentinel.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &Sentinel{Address: fmt.Sprintf("127.0.0.1:%d", port), cmd: exec.Command("redis-server", path, "--sentinel")}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

// NewSentinelTLS starts a Sentinel that speaks only TLS, with the certificate in the files, and watches the master at a
// TLS port. Like NewTLS, it asks for certificates. It returns its host:port, by the name in the certificate.
func NewSentinelTLS(t testing.TB, certFile, keyFile, authClients string, masterPort int) (address string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	p := runSentinel(t, fmt.Sprintf(`tls-port %%d
port 0
tls-cert-file %s
tls-key-file %s
tls-ca-cert-file %[1]s
tls-replication yes
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
tls-auth-clients %[3]s
sentinel monitor %[4]s localhost %[5]d 1
`, certFile, keyFile, authClients, MasterName, masterPort))
	waittest.Eventually(t, 20*time.Second, func() error {
		conn, err := tls.Dial("tcp", p.Address, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}})
		if err == nil {
			conn.Close()
		}
		return err
	})
	_, port, _ := net.SplitHostPort(p.Address)
	return "localhost:" + port
}

// Kill ends the Sentinel at once.
func (p *Sentinel) Kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *Sentinel) alive() bool { return p.cmd.ProcessState == nil }

// check returns an error unless the Sentinels name one master and know each other and both replicas, which are in sync.
func (g *Sentinels) check(t testing.TB) error {
	master := g.Master(t)
	for _, p := range g.Nodes {
		if !p.alive() {
			continue
		}
		info, err := p.info()
		if err != nil {
			return err
		}
		complete := strings.Contains(info, "status=ok") && strings.Contains(info, "slaves=2,sentinels=3")
		if !complete || g.masterOf(t, p) != master {
			return errors.New(info)
		}
	}
	for _, r := range g.servers {
		replication := r.String(t, "INFO", "replication")
		if r == master && Field(replication, "role") == "master" {
			continue
		}
		if Field(replication, "master_port") != strconv.Itoa(master.Port) ||
			Field(replication, "master_link_status") != "up" {
			return errors.New("a replica is not in sync")
		}
	}
	return nil
}

func (p *Sentinel) info() (string, error) { return redis.String(p.do("INFO", "sentinel")) }

// do runs one command over a connection of its own.
func (p *Sentinel) do(command string, args ...any) (any, error) {
	c, err := redis.Dial("tcp", p.Address, redis.DialPassword(p.password))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Do(command, args...)
}

// Do runs one command over a connection of its own. It must succeed.
func (p *Sentinel) Do(t testing.TB, command string, args ...any) any {
	t.Helper()
	reply, err := p.do(command, args...)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return reply
}

// Monitor has the Sentinel forget the master, and watch the server at a port instead, or none if that is 0.
func (p *Sentinel) Monitor(t testing.TB, port int) {
	t.Helper()
	p.Do(t, "SENTINEL", "REMOVE", MasterName)
	if port != 0 {
		p.Do(t, "SENTINEL", "MONITOR", MasterName, "127.0.0.1", port, 2)
	}
}

// URL returns the URL for the services under test, without the password of the Sentinels.
func (g *Sentinels) URL() string { return SentinelURL(g.Nodes...) }

// SentinelURL returns the URL of some Sentinels for the services under test, without their password.
func SentinelURL(sentinels ...*Sentinel) string {
	var addresses []string
	for _, p := range sentinels {
		addresses = append(addresses, p.Address)
	}
	return fmt.Sprintf("redis-sentinel://tollgate:%s@%s/%s", Password, strings.Join(addresses, ","), MasterName)
}

// Master returns the master that the first Sentinel which is up names.
func (g *Sentinels) Master(t testing.TB) *Server {
	t.Helper()
	return g.masterOf(t, g.Nodes[slices.IndexFunc(g.Nodes, (*Sentinel).alive)])
}

// masterOf returns the master that a Sentinel names.
func (g *Sentinels) masterOf(t testing.TB, p *Sentinel) *Server {
	t.Helper()
	address, err := redis.Strings(p.Do(t, "SENTINEL", "get-master-addr-by-name", MasterName), nil)
	if err != nil {
		t.Fatal(err)
	}
	return g.servers[slices.IndexFunc(g.servers, func(r *Server) bool { return strconv.Itoa(r.Port) == address[1] })]
}

// Promoted waits until a Sentinel names another master than old, and returns it.
func (g *Sentinels) Promoted(t testing.TB, old *Server) (promoted *Server) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() (err error) {
		promoted, err = g.successor(t, old)
		return err
	})
	return promoted
}

// successor returns the master that a Sentinel names instead of old. Error: none does.
func (g *Sentinels) successor(t testing.TB, old *Server) (*Server, error) {
	t.Helper()
	for _, p := range g.Nodes {
		if p.alive() {
			if promoted := g.masterOf(t, p); promoted != old {
				return promoted, nil
			}
		}
	}
	return nil, errors.New("no replica was promoted")
}

// Heal makes old, which is no longer the master, a replica, as the Sentinels would do after ten seconds, and waits
// until the group is complete. Before, it waits until all Sentinels name the same master: one that still took old for
// it would not know what to make of a master that replicates.
func (g *Sentinels) Heal(t testing.TB, old *Server) {
	t.Helper()
	var promoted *Server
	waittest.Eventually(t, 30*time.Second, func() error {
		promoted = g.Master(t)
		for _, p := range g.Nodes {
			if p.alive() && g.masterOf(t, p) != promoted || promoted == old {
				return errors.New("a Sentinel does not name the promoted replica yet")
			}
		}
		return nil
	})
	old.Do(t, "REPLICAOF", "127.0.0.1", promoted.Port)
	waittest.Eventually(t, 30*time.Second, func() error { return g.check(t) })
}

// Failover has the first Sentinel promote a replica of old, which is alive, and returns it. A Sentinel refuses that
// soon after another failover, and gives it up after a second, which a busy machine may exceed.
func (g *Sentinels) Failover(t testing.TB, old *Server) (promoted *Server) {
	t.Helper()
	var asked time.Time
	waittest.Eventually(t, time.Minute, func() (err error) {
		if promoted, err = g.successor(t, old); err == nil || time.Since(asked) < 5*time.Second {
			return err
		}
		if _, err = g.Nodes[0].do("SENTINEL", "FAILOVER", MasterName); err == nil {
			asked = time.Now()
			err = errors.New("no replica was promoted yet")
		}
		return err
	})
	return promoted
}
