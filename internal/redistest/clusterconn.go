package redistest

import (
	"errors"
	"slices"
	"strings"

	"github.com/gomodule/redigo/redis"
)

// Conn returns a connection that runs each command on the master that has its key, and those without a key, such as
// KEYS, on all that were masters at the start. Only Do and Close may be used.
func (c *Cluster) Conn() redis.Conn { return &clusterConn{c, make(map[string]redis.Conn)} }

// clusterConn follows redirections.
type clusterConn struct {
	cluster *Cluster
	conns   map[string]redis.Conn
}

func (c *clusterConn) Close() error {
	for _, conn := range c.conns {
		conn.Close()
	}
	return nil
}

func (c *clusterConn) at(address string) (redis.Conn, error) {
	if conn := c.conns[address]; conn != nil {
		return conn, nil
	}
	conn, err := redis.Dial("tcp", address)
	if err == nil {
		c.conns[address] = conn
	}
	return conn, err
}

func (c *clusterConn) Do(command string, args ...any) (any, error) {
	switch command {
	case "KEYS", "SCRIPT", "PING", "CLIENT", "CONFIG", "ACL", "FLUSHALL", "INFO":
		return c.doAll(command, args...)
	case "EXISTS", "DEL":
		total := int64(0)
		for _, key := range args {
			n, err := redis.Int64(c.doOne(command, key))
			if err != nil {
				return nil, err
			}
			total += n
		}
		return total, nil
	}
	return c.doOne(command, args...)
}

// doAll runs a command on all masters. It returns the elements of all their replies, or the last reply.
func (c *clusterConn) doAll(command string, args ...any) (reply any, err error) {
	var elements []any
	for _, n := range c.cluster.Nodes[:c.cluster.Masters] {
		conn, err := c.at(n.TCP)
		if err == nil {
			reply, err = conn.Do(command, args...)
		}
		if err != nil {
			return nil, err
		}
		if some, ok := reply.([]any); ok {
			elements = append(elements, some...)
			reply = elements
		}
	}
	return reply, nil
}

func (c *clusterConn) doOne(command string, args ...any) (any, error) {
	address := c.cluster.Nodes[slices.IndexFunc(c.cluster.Nodes, (*Server).Alive)].TCP
	for {
		conn, err := c.at(address)
		if err != nil {
			return nil, err
		}
		reply, err := conn.Do(command, args...)
		if err != nil && strings.HasPrefix(err.Error(), "MOVED ") { // MOVED <slot> <address>
			address = strings.Fields(err.Error())[2]
			continue
		}
		return reply, err
	}
}

var errOnlyDo = errors.New("a clusterConn can only Do")

func (c *clusterConn) Err() error { return nil }

func (c *clusterConn) Send(string, ...any) error { return errOnlyDo }

func (c *clusterConn) Flush() error { return errOnlyDo }

func (c *clusterConn) Receive() (any, error) { return nil, errOnlyDo }
