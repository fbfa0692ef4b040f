package redistest

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/gomodule/redigo/redis"
)

// borrowedKey marks a database of a server that was there before as one that tests use. Its value is the time at which
// they began.
const borrowedKey = "tollgate-tests"

// borrow returns an empty database of the server at rawURL (redis://…), in which the services log in as a user who has
// the rules of redis.acl. The user in rawURL must be an administrator. Close empties the database again and deletes the
// services' user.
func borrow(rawURL string) (*Server, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "redis" || u.Host == "" {
		return nil, errors.New("TEST_REDIS_URL must have the form redis://[[user]:password@]host[:port]")
	}
	if u.Port() == "" {
		u.Host += ":6379"
	}
	password, _ := u.User.Password()
	r := &Server{Network: "tcp", Address: u.Host, TCP: u.Host}
	options := []redis.DialOption{redis.DialUsername(u.User.Username()), redis.DialPassword(password)}
	for r.database = 15; r.database > 0; r.database-- {
		r.Options = append(options, redis.DialDatabase(r.database))
		free, err := r.take()
		if err != nil {
			return nil, fmt.Errorf("TEST_REDIS_URL, as an administrator: %w", err)
		}
		if free {
			return r, nil
		}
	}
	return nil, errors.New("TEST_REDIS_URL: none of the databases 1 to 15 is empty")
}

// take makes the database that of these tests and reports whether it was free: empty, or left behind by tests that were
// aborted.
func (r *Server) take() (bool, error) {
	c, err := r.Dial()
	if err != nil {
		return false, err
	}
	defer c.Close()
	if began, err := redis.Int64(c.Do("GET", borrowedKey)); err == nil && time.Since(time.Unix(began, 0)) > time.Hour {
		if _, err := c.Do("FLUSHDB"); err != nil {
			return false, err
		}
	}
	if n, err := redis.Int(c.Do("DBSIZE")); err != nil || n > 0 {
		return false, err
	}
	if taken, err := redis.String(c.Do("SET", borrowedKey, time.Now().Unix(), "NX")); taken != "OK" {
		return false, ignoreNil(err)
	}
	rules, err := leastPrivilege()
	if err != nil {
		return false, err
	}
	r.User = fmt.Sprintf("tollgate-test-%d", r.database)
	setUser := []any{"SETUSER", r.User, "reset", "on", ">" + Password}
	for _, rule := range rules {
		setUser = append(setUser, rule)
	}
	_, err = c.Do("ACL", setUser...)
	return err == nil, err
}

// giveBack undoes take.
func (r *Server) giveBack() {
	c, err := r.Dial()
	if err == nil {
		defer c.Close()
		_, err = c.Do("FLUSHDB")
		_, err2 := c.Do("ACL", "DELUSER", r.User)
		err = errors.Join(err, err2)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "database %d of TEST_REDIS_URL is not cleaned up: %v\n", r.database, err)
	}
}
