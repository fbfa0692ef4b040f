package redisdb

import "testing"

func TestCheckInfo(t *testing.T) {
	tests := []struct {
		name, info string
		ok         bool
	}{
		{"Redis 7.0", "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n", true},
		{"Redis 8", "# Server\r\nredis_version:8.2.1\r\n", true},
		{"Redis 10", "# Server\r\nredis_version:10.0.0\r\n", true},
		{"Valkey", "# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\n", true},
		{"Redis 6", "# Server\r\nredis_version:6.2.14\r\n", false},
		{"a development build", "# Server\r\nredis_version:255.255.255\r\n", true},
		{"no version", "# Server\r\n", false},
	}
	for _, test := range tests {
		if err := checkRedisVersion(test.info); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}
