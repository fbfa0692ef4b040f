package redisdb_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redisdb"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetry"
)

// take takes ARGV[1] from a balance, unless that is smaller, and returns what is left, or -1.
var take = redisdb.NewScript("take", `
	local left = tonumber(redis.call('GET', KEYS[1]) or '0') - tonumber(ARGV[1])
	if left < 0 then
		return -1
	end
	redis.call('SET', KEYS[1], left)
	return left
`, redisdb.AllowOOM) // the new balance takes no more room than the old one

func Example() {
	server, err := redistest.Start()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()

	url, err := redisdb.ParseURL(server.URL()) // or redis-sentinel://… or redis-cluster://…
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	client, err := redisdb.Open(ctx, redisdb.Options{
		URL:      url,
		Required: []redisdb.Requirement{{Prefix: "apiKey:", Commands: "GET SET"}},
		ProbeKey: func(i int) string { return "apiKey:{" + strconv.Itoa(i) + "}" },
		Log:      telemetry.NewLogger(os.Stderr),
	})
	if err != nil {
		fmt.Println(url.Redact(err.Error()))
		return
	}
	defer client.Close()

	deadline := time.Now().Add(5 * time.Second)
	if _, err := client.Write(deadline, "SET", "apiKey:x", 100); err != nil {
		fmt.Println(err)
		return
	}
	for _, n := range []int{30, 80} {
		left, err := redis.Int(client.Eval(deadline, take, []string{"apiKey:x"}, n))
		if err != nil {
			fmt.Println(err, redisdb.MayHaveRun(err))
			return
		}
		fmt.Println(left)
	}
	// Output:
	// 70
	// -1
}
