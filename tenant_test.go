package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

func FuzzTenantID(f *testing.F) {
	for _, id := range []string{"abc", "a_-9", "", "_a", "a:b", "a\x00", "é", strings.Repeat("a", 65)} {
		f.Add(id)
	}
	pattern := regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\z`)
	f.Fuzz(func(t *testing.T, id string) {
		if got, want := validTenantID(id), pattern.MatchString(id); got != want {
			t.Errorf("%q: got %v, want %v", id, got, want)
		}
	})
}

// A group's name has 1 to 64 bytes, wherever it is named.
func TestGroupNames(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 10)
	longest, tooLong := strings.Repeat("ü", 32), strings.Repeat("g", 65)
	s.putConfig(t, id, `{"user_groups":{"`+longest+`":{"tokens":3},"g":{}}}`).want(t, 200, `{"success":true}`)
	key := s.issue(t, id, `"userId":"u","group":"`+longest+`"`)
	s.consume(t, id, key, "").want(t, 200, `{"tokensLeft":2}`)
	for _, test := range []struct{ name, path string }{
		{"", `user_groups[""]`}, {tooLong, `user_groups["` + tooLong[:64] + `…"]`}, {longest + "x", `user_groups["` + longest + `…"]`},
	} {
		config := `{"user_groups":{"` + test.name + `":{"tokens":1}}}`
		want := "Invalid config: " + test.path + " must have a name of 1 to 64 bytes"
		s.putConfig(t, id, config).wantError(t, 400, want)
		s.createTenant(t, newTenantID(), config).wantError(t, 400, want)
		const known = "group must be one of the tenant's user_groups: "
		for _, got := range []reply{
			s.admin(t, "POST", "/"+id+"/admin/keys", `{"userId":"u","group":"`+test.name+`"}`),
			s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"group":"`+test.name+`"}`),
		} {
			got.want(t, 400, "")
			if text := got.text(t, "error"); !strings.HasPrefix(text, known) {
				t.Errorf("got %s", text)
			}
		}
		direct := newTenantIn(t, testRedis, config)
		s.do(t, "POST", "/"+direct+"/auth/anonymous", "").want(t, 500, `{"error":"Internal error"}`)
		if s.log.Count("[ERROR] The config of tenant "+direct+" is broken: "+want) != 1 {
			t.Errorf("log:\n%s", s.log)
		}
	}
}

// A charge in a config with many groups finds its group without a scan.
func TestGroupTable(t *testing.T) {
	var members []string
	for i := range 17_000 {
		members = append(members, fmt.Sprintf(`"group %d":{"rate_limit":%d,"rate_limit_window":60}`, i, i))
	}
	config, err := parseConfig([]byte(`{"user_groups":{` + strings.Join(members, ",") + `}}`))
	if err != nil {
		t.Fatal(err)
	}
	const lookups = 20_000
	began := time.Now()
	for i := range lookups {
		n := i % 17_000
		name := fmt.Sprint("group ", n)
		groups, only := config.encoded.argument(name)
		if want := fmt.Sprintf("\xffgroup %d\xfe%d 60", n, n); groups != want || only != name {
			t.Fatalf("got %q, %q, want %q", groups, only, want)
		}
	}
	if took := time.Since(began); took > lookups*20*time.Microsecond { // a scan takes 100 µs
		t.Errorf("%d lookups took %s", lookups, took)
	}
	if groups, only := config.encoded.argument("group 17000"); groups != "" || only != "group 17000" {
		t.Errorf("of an unknown group %q is sent", groups)
	}
}
