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
		"redis-cluster://a,b:SECRET":    "host",
		"redis-sentinel://a,b":          "names no master",
		"redis-sentinel://a/x/SECRET":   "database number",
		"redis-sentinel://a/x?db=1":     "query",
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
