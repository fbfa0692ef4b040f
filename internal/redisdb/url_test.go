package redisdb

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestParseRedisURL(t *testing.T) {
	good := []struct {
		url  string
		want URL
	}{
		{"redis://", URL{network: "tcp", address: "localhost:6379"}},
		{"redis://h", URL{network: "tcp", address: "h:6379"}},
		{"redis://[::1]", URL{network: "tcp", address: "[::1]:6379"}},
		{"redis://[::1]:7/2", URL{network: "tcp", address: "[::1]:7", db: 2}},
		{"rediss://u:p%40@h:1", URL{network: "tcp", address: "h:1", tls: true, username: "u", password: "p@"}},
		{"unix:///tmp/r.sock", URL{network: "unix", address: "/tmp/r.sock"}},
		{"unix://:pw@/tmp/r.sock?db=3", URL{network: "unix", address: "/tmp/r.sock", password: "pw", db: 3}},
	}
	for _, test := range good {
		if got, err := ParseURL(test.url); err != nil || !reflect.DeepEqual(*got, test.want) {
			t.Errorf("%s: got %+v, %v, want %+v", test.url, got, err, test.want)
		}
	}
	bad := []string{
		"", "localhost:6379", "http://:SECRET@h", "redis://:SEC#RET@h", "redis://:SEC/RET@h", "redis://h/SECRET",
		"redis://h/-1", "redis://h/0/1", "redis://h?db=SECRET", "unix://tmp/SECRET", "unix://", "unix:///s?db=SECRET",
		"redis:SECRET", "redis://h:SECRET",
	}
	for _, url := range bad {
		if got, err := ParseURL(url); err == nil {
			t.Errorf("%s: got %+v, want an error", url, got)
		} else if strings.Contains(err.Error(), "SEC") || strings.Contains(err.Error(), "RET") {
			t.Errorf("%s: the error shows the URL: %v", url, err)
		}
	}
}

func TestParseSeveralHosts(t *testing.T) {
	good := []struct {
		url  string
		want URL
	}{
		{"redis-cluster://h", URL{topology: clusterServers, network: "tcp", seeds: []string{"h:6379"}}},
		{"rediss-cluster://:p%40w@a,b:7/", URL{
			topology: clusterServers, network: "tcp", tls: true, password: "p@w", seeds: []string{"a:6379", "b:7"},
		}},
		{"redis-cluster://u:p@[::1]:1,[fd00::2]", URL{
			topology: clusterServers, network: "tcp", username: "u", password: "p", seeds: []string{"[::1]:1", "[fd00::2]:6379"},
		}},
		{"redis-sentinel://a,b:7/main", URL{
			topology: sentinelMaster, network: "tcp", seeds: []string{"a:26379", "b:7"}, master: "main",
		}},
		{"rediss-sentinel://:pw@a:1/my%20main/3", URL{
			topology: sentinelMaster, network: "tcp", tls: true, password: "pw", seeds: []string{"a:1"},
			master: "my main", db: 3,
		}},
	}
	for _, test := range good {
		if got, err := ParseURL(test.url); err != nil || !reflect.DeepEqual(*got, test.want) {
			t.Errorf("%s: got %+v, %v, want %+v", test.url, got, err, test.want)
		}
	}
	bad := map[string]string{
		"redis-cluster://h/0":           "database",
		"redis-cluster://h/3":           "database",
		"redis-cluster://a,,b":          "host",
		"redis-cluster://a,b:SECRET":    "has a port that",
		"redis-sentinel://a,b":          "names no master",
		"redis-sentinel://a/x/SECRET":   "database number",
		"redis-sentinel://a/x?db=1":     "/<name>/1",
		"redis://a:1,b:2":               "redis-cluster://",
		"rediss://:SECRET@a,b/1":        "redis-sentinel://",
		"redis+sentinel://:SECRET@a,b/": "must begin with",
	}
	for _, url := range slices.Sorted(maps.Keys(bad)) {
		if got, err := ParseURL(url); err == nil || !strings.Contains(err.Error(), bad[url]) {
			t.Errorf("%s: got %+v, %v, want an error with %q", url, got, err, bad[url])
		} else if strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: the error shows the URL: %v", url, err)
		}
	}
}

// What an operator may write by mistake is named, with what to write instead. No error shows a part of a password, and
// none has a line break.
func TestRedisURLMistakes(t *testing.T) {
	const begin = "must begin with redis://, rediss:// (TLS), unix://, "
	tests := []struct{ url, want string }{ // want is the whole error or, if it ends in …, how it begins; "" means no error
		{"redis://h:6379\n", ""},
		{" \tredis://h:6379 \r\n", ""},
		{"rediss-sentinel://h/m\n", ""},
		{"\nredis-cluster://a,b\r\n", ""},
		{"unix:///tmp/r.sock\n", ""},
		{"REDIS://h", ""},
		{" \n", begin + "…"},
		{`"redis://h:6379"`, "has quotes around it: leave them out"},
		{`'rediss-cluster://:SECRET@a,b'`, "has quotes around it: leave them out"},
		{`unix:///tmp/r.sock"`, "has quotes around it: leave them out"},
		{"redis://h:6379\nredis://:SECRET@i", "has a line break or another control character in it"},
		{"10.0.0.5:6379", begin + "…"},
		{"[::1]:6379", begin + "…"},
		{"redis-server.example.com", begin + "…"},
		{"redis//h:6379", begin + "…"},
		{"redis", begin + "…"},
		{"unix", begin + "…"},
		{"redis://h:abc", "has a port that is not a number from 1 to 65535"},
		{"redis://h:99999", "has a port that is not a number from 1 to 65535"},
		{"rediss://h:0", "has a port that is not a number from 1 to 65535"},
		{"redis-sentinel://a,b:70000/m", "has a port that is not a number from 1 to 65535"},
		{"redis-cluster://[::1]:x", "has a port that is not a number from 1 to 65535"},
		{"redis://[::1", "has a host that is neither a name nor an IP address: an IPv6 address needs brackets, as in [::1]:6379"},
		{"redis://::1:6379", "has a host that is neither a name nor an IP address: an IPv6 address needs brackets, as in [::1]:6379"},
		{"redis-cluster://a,[fd00::2", "has a host that is neither a name nor an IP address: an IPv6…"},
		{"redis://my host:6379", "has a host that is neither a name nor an IP address"},
		{"redis-cluster://a, b", "has a host that is neither a name nor an IP address"},
		{"redis-cluster://a,", "has a comma without a host before or after it"},
		{"redis-cluster://a,:7", "has a comma without a host before or after it"},
		{"rediss://h?ssl_cert_reqs=none", `has an unknown parameter "ssl_cert_reqs": leave it out; TLS (rediss://) is always ` +
			"verified, REDIS_CA_FILE names a CA of your own, REDIS_CERT_FILE and REDIS_KEY_FILE a client certificate"},
		{"rediss-cluster://h?tls_insecure=1", `has an unknown parameter "tls_insecure": leave it out; TLS…`},
		{"rediss://h?skip_verify=true", `has an unknown parameter "skip_verify": leave it out; TLS…`},
		{"redis://h?protocol=3", `has an unknown parameter "protocol": leave it out`},
		{"redis://h?db=1", `has an unknown parameter "db": write it behind the host: /1`},
		{"redis://h?db=SECRET", `has an unknown parameter "db": write it behind the host: /<number>`},
		{"redis-cluster://h?db=0", `has an unknown parameter "db": leave it out; a Redis Cluster has only one database`},
		{"redis-sentinel://h/m?db=2", `has an unknown parameter "db": write it behind the name of the master: /<name>/2`},
		{"unix:///s?database=2", `has an unknown parameter "database": write ?db=2`},
		{"redis-sentinel://h?master=m", `has an unknown parameter "master": write it behind the hosts: redis-sentinel://<host>:<port>/m`},
		{"rediss://h?sentinelMasterId=m", `has an unknown parameter "sentinelMasterId": ` +
			"write it behind the hosts: rediss-sentinel://<host>:<port>/m"},
		{"redis://h?password=SECRET", `has an unknown parameter "password": write it before the host: <user>:<password>@<host>`},
		{"redis://h?SECRET", "has an unknown query (is a ? in its password written as %3F?)"},
		{"redis://h?a;b", "has a query that is not name=value"},
		{"redis://:SEC?RET=1@h", "has an @ behind a /, ? or #: in a password write these as %40, %2F, %3F and %23"},
		{"redis-sentinel://:SEC/RET@h/m", "has an @ behind a /, ? or #: in a password write these as %40, %2F, %3F and %23"},
		{"unix://:SEC/RET@/tmp/r.sock", "has an @ behind a /, ? or #: in a password write these as %40, %2F, %3F and %23"},
		{"redis-sentinel://h:26379#mymaster", "has a fragment: write the name of the master after a slash: /mymaster"},
		{"rediss-sentinel://a,b/#mymaster", "has a fragment: write the name of the master after a slash: /mymaster"},
		{"redis://h#SECRET", "has a fragment: write a # in its password as %23"},
		{"redis:h:6379", "lacks slashes: two must follow the colon, as in redis://"},
		{"redis:/h:6379", "lacks slashes: two must follow the colon, as in redis://"},
		{"rediss-cluster:/a,b", "lacks slashes: two must follow the colon, as in rediss-cluster://"},
		{"redis:///h:6379", "has more than two slashes behind the colon: write redis://<host>"},
		{"redis-sentinel:///h:26379/m", "has more than two slashes behind the colon: write redis-sentinel://<host>"},
		{"redis:///3", ""},
		{"redis-sentinel:///m", ""},
		{"unix:/tmp/r.sock", ""},
		{"unix:tmp/r.sock", "must have three slashes before a socket's path: unix:///path/redis.sock"},
		{"redis://:SEC%zzRET@h", "is not a valid URL (are special characters in its password percent-encoded?)"},
	}
	for _, test := range tests {
		got := ""
		u, err := ParseURL(test.url)
		if err != nil {
			got = err.Error()
		}
		want, prefix := strings.CutSuffix(test.want, "…")
		if got != want && !(prefix && strings.HasPrefix(got, want)) || (u == nil) == (err == nil) {
			t.Errorf("%q: got %q, %v, want %q", test.url, got, u, test.want)
		}
		if strings.Contains(got, "SEC") || strings.Contains(got, "RET") || strings.Contains(got, "\n") {
			t.Errorf("%q: the error shows the URL: %q", test.url, got)
		}
	}
}

// Whatever the URL, there is a server in what is returned, or an error of one line.
func FuzzParseURL(f *testing.F) {
	for _, url := range []string{
		"redis://h:1", "redis-sentinel://:p@a,b/m/1", "unix://:p@/s?db=1", "redis://h?a=b#c", "redis-cluster://[::1]:1,b",
	} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, url string) {
		u, err := ParseURL(url)
		switch {
		case err == nil && u.address == "" && len(u.seeds) == 0:
			t.Errorf("got %+v, want an address", u)
		case err != nil && (u != nil || strings.ContainsAny(err.Error(), "\r\n")):
			t.Errorf("got %+v, %q", u, err)
		}
	})
}
