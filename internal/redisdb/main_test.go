package redisdb

import (
	"fmt"
	"os"
	"testing"

	"tollgate/internal/redistest"
)

// testRedis is the Redis of all tests that do not stop, freeze, restart or configure theirs.
var testRedis *redistest.Server

func TestMain(m *testing.M) {
	os.Exit(func() int {
		server, err := redistest.StartSharedServer()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer server.Close()
		defer redistest.CloseSharedCluster()
		testRedis = server
		return m.Run()
	}())
}
