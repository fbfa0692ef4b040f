package redisdb

import (
	"os"
	"testing"

	"tollgate/internal/redistest"
)

// testRedis is the Redis of all tests that do not stop, freeze, restart or configure theirs.
var testRedis *redistest.Server

func TestMain(m *testing.M) {
	os.Exit(redistest.Main(m, redistest.StartSharedServer, &testRedis))
}
