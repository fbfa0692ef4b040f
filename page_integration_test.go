//go:build integration

package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/stripetest"
	"tollgate/internal/waittest"
)

// walksDir has the walks: each file does on the admin page what a person does. browser.mjs says how.
const walksDir = sdkDir + "/page"

// pageConfig is the config of the tenants of walks. %[1]s is the URL of a provider, %[2]s its key.
const pageConfig = `{
  "user_groups": {
    "anonymous": {"tokens": 1000, "rate_limit": 10, "rate_limit_window": 60},
    "free": {"tokens": 1000, "rate_limit": 20, "rate_limit_window": 60},
    "pro": {"tokens": 50000, "refill": {"tokens": 50000, "every": "month"}}
  },
  "cors": {"allowed_origins": ["https://app.example.com"]},
  "auth": {"stripe": {
    "api_key": "` + stripetest.Key + `", "webhook_secret": "` + stripetest.Secret + `", "free_group": "free",
    "return_urls": ["https://app.example.com/"],
    "prices": {"price_pack": {"tokens": 10000}, "price_pro": {"group": "pro"}}
  }},
  "providers": {
    "text": {"default": "openai", "endpoints": {
      "openai": {"url": "%[1]s/v1/chat/completions", "api_key": "%[2]s", "default_model": "gpt-4o",
        "models": {"gpt-4o-mini": {"input": 0.5, "output": 2}}},
      "anthropic": {"url": "%[1]s/v1/messages", "api_key": "%[2]s", "default_model": "claude-opus-4-1"},
      "gone": {"url": "http://127.0.0.1:1/v1/chat/completions", "default_model": "gone"}
    }},
    "embeddings": {"default": "openai", "endpoints": {
      "openai": {"url": "%[1]s/v1/embeddings", "api_key": "%[2]s", "default_model": "text-embedding-3-small"}
    }}
  },
  "caching": {"enabled": true, "text_ttl": 3600}
}`

// A pageTest is what the walks have in common: a program with a Redis of its own, a provider and a Stripe.
type pageTest struct {
	*service
	redis    *redistest.Server
	store    *store
	provider *providertest.Provider
	stripe   *stripetest.Server
	chromium string
	shots    string        // the directory of screenshots
	turns    chan struct{} // of walks: a browser keeps more than one core busy
}

// A pageTenant is the tenant of one walk.
type pageTenant struct {
	tenant, token string
	alice, bob    string // API keys
}

// The walks in walksDir, on the page of the real program. Those in prepare find more than others do.
func TestIntegrationPage(t *testing.T) {
	w := newPageTest(t)
	prepare := map[string]func(*testing.T, *pageTenant){
		"config": w.addBroken, "payments": w.addPayments, "users": w.addMalformed,
	}
	tenants := map[string]string{"picture": "acme"} // instead of the walk's name
	files, err := filepath.Glob(walksDir + "/*.mjs")
	if err != nil || len(files) < 2 {
		t.Fatalf("%s has %q, %v", walksDir, files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".mjs")
		if name == "browser" { // what they have in common
			continue
		}
		t.Run(name, func(t *testing.T) {
			if name != "speed" { // which runs before the others
				t.Parallel()
			}
			one := w.newTenant(t, cmp.Or(tenants[name], name))
			if prepare[name] != nil {
				prepare[name](t, one)
			}
			w.run(t, file, one)
		})
	}
}

func newPageTest(t *testing.T) *pageTest {
	t.Helper()
	nodeModules(t)
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("pages are tested in a real browser (`make integration` installs it): %v", err)
	}
	shots, err := os.MkdirTemp("", "tollgate-page-") // it stays: people look at it
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the screenshots are in %s", shots)
	w := &pageTest{
		redis: redistest.New(t), provider: providertest.New(t), stripe: stripetest.New(t), chromium: chromium, shots: shots,
		turns: make(chan struct{}, 2),
	}
	w.provider.On("hostile", providertest.Conduct{Content: "<img src=x onerror=hacked='answer'>"})
	w.provider.On("refused", providertest.Conduct{Status: 400, Body: `{"error":{"message":"<script>hacked='refused'</script>"}}`})
	w.store = newTestStore(t, w.redis)
	p := startProcess(t, []string{
		"REDIS_URL=" + w.redis.URL(), "ADDR=127.0.0.1:0", "ADMIN_TOKEN=" + testAdminToken, "STRIPE_API_URL=" + w.stripe.URL, "SEED=false",
	})
	w.service = p.service(t)
	return w
}

// newTenant creates a tenant with pageConfig, users and some usage.
func (w *pageTest) newTenant(t *testing.T, tenant string) *pageTenant {
	t.Helper()
	config := fmt.Sprintf(pageConfig, w.provider.URL, providertest.Key)
	w.admin(t, "POST", "/admin/tenants", fmt.Sprintf(`{"tenantId":%q,"config":%s}`, tenant, config)).want(t, 201, "")
	created := w.admin(t, "POST", "/"+tenant+"/admin/tokens", "")
	created.want(t, 201, "")
	one := &pageTenant{
		tenant: tenant, token: created.text(t, "adminToken"),
		alice: w.issue(t, tenant, `"userId":"alice","group":"pro","label":"laptop"`),
		bob:   w.issue(t, tenant, `"userId":"bob","group":"free"`),
	}
	for path, model := range map[string]string{"chat/completions": "gpt-4o", "messages": "claude-opus-4-1"} {
		body := fmt.Sprintf(`{"model":%q,"max_tokens":20,"messages":[{"role":"user","content":"Hello"}]}`, model)
		if err := w.do(t, "POST", "/"+tenant+"/v1/"+path, body, bearer(one.alice)).is(200); err != nil {
			t.Fatal(err)
		}
	}
	w.consume(t, tenant, one.bob, `{"tokens":300}`).want(t, 200, "")
	w.consume(t, tenant, one.bob, `{"tokens":5000}`).want(t, 402, "")
	waittest.Eventually(t, 20*time.Second, func() error { // from then on what a walk reads stays the same
		got := w.usageDays(t, "/"+tenant+"/admin/usage?by=user&from="+today()+"&to="+today())[0]
		if users := got.ByUser; got.Refused.Balance != 1 || len(users) != 2 || users[0].Requests+users[1].Requests != got.Requests {
			return fmt.Errorf("the usage is not written yet: %+v", got)
		}
		return nil
	})
	w.addUsage(t, tenant)
	return one
}

// addUsage puts the usage of 40 days into Redis, as if the program had counted it. Each walk finds the same.
func (w *pageTest) addUsage(t *testing.T, tenant string) {
	t.Helper()
	generation := w.store.wantTenant(t, tenant).generation
	now := time.Now().Unix() / daySeconds
	for ago := int64(0); ago < 40; ago++ {
		d := new(dayUsage)
		add := func(user, group, endpoint, model string, requests int64) {
			e := usageEvent{group: group, endpoint: endpoint, model: model, requests: requests, charged: requests * 420}
			e.used.Input, e.used.Output = requests*310, requests*110
			d.add(&e, e.sums())
			d.addUser(user, e.requests, e.charged)
		}
		busy := 60 - ago/2 + 9*(ago*ago%5)
		if weekday := (now - ago + 4) % 7; weekday == 0 || weekday == 6 {
			busy /= 3
		}
		add("alice", "pro", "openai", "gpt-4o", busy)
		add("bob", "free", "openai", "gpt-4o-mini", busy*2)
		add("carol", "pro", "anthropic", "claude-opus-4-1", busy/2)
		add("", "anonymous", "openai", "gpt-4o-mini", busy/4)
		d.granted, d.cacheHits = 1000*(ago%4), busy/3
		d.refused[refusedBalance], d.refused[refusedRate], d.refused[refusedKey] = ago%3, ago*ago%7, ago%2
		day := usageDay{tenant, generation, now - ago}
		if users := []string{"alice", "bob", "carol", ""}; !w.store.AddUsage(in(10*time.Second), day, d) ||
			!w.store.AddUserUsage(in(10*time.Second), day, users, d.users) {
			t.Fatalf("the usage of %s on %s was not added", tenant, formatDay(day.day))
		}
	}
}

// addMalformed has a user get a key, which is then malformed in Redis.
func (w *pageTest) addMalformed(t *testing.T, one *pageTenant) {
	t.Helper()
	key := w.issue(t, one.tenant, `"userId":"malformed","group":"free"`)
	w.redis.Do(t, "HSET", apiKeyRedisKey(key), "tokensLeft", "many")
}

// addPayments has alice buy a pack and a subscription, of which one is refunded, and somebody pay whose key is gone.
func (w *pageTest) addPayments(t *testing.T, one *pageTenant) {
	t.Helper()
	deliver := func(events []stripetest.Event) {
		for _, event := range events {
			w.deliver(t, one.tenant, string(event.Body)).want(t, 200, `{"received":true}`)
		}
	}
	buy := func(key, price string) (session string) {
		w.do(t, "POST", "/"+one.tenant+"/billing/checkout", fmt.Sprintf(`{"price":%q,"successUrl":"https://app.example.com/",`+
			`"cancelUrl":"https://app.example.com/"}`, price), bearer(key)).want(t, 201, "")
		sessions := w.stripe.Sessions()
		return sessions[len(sessions)-1]
	}
	pack := buy(one.alice, "price_pack")
	deliver(w.stripe.Pay(pack))
	deliver(w.stripe.Refund(pack, stripetest.UnitAmount/2))
	deliver(w.stripe.Pay(buy(one.bob, "price_pro")))
	gone := w.issue(t, one.tenant, `"userId":"<img src=x onerror=hacked=1>","group":"free"`)
	late := buy(gone, "price_pack")
	w.admin(t, "DELETE", "/"+one.tenant+"/admin/keys/"+gone, "").want(t, 204, "")
	deliver(w.stripe.Pay(late))
}

// addBroken creates two more tenants, and writes configs that break the rules straight to Redis for them.
func (w *pageTest) addBroken(t *testing.T, one *pageTenant) {
	t.Helper()
	for suffix, config := range map[string]string{"-broken": `{"caching":7}`, "-torn": `{"user_groups":{`} {
		tenant := one.tenant + suffix
		w.admin(t, "POST", "/admin/tenants", fmt.Sprintf(`{"tenantId":%q,"config":{"made":1.10}}`, tenant)).want(t, 201, "")
		w.redis.Do(t, "SET", configRedisKey(tenant), config)
	}
}

// run takes a walk.
func (w *pageTest) run(t *testing.T, file string, one *pageTenant, env ...string) {
	t.Helper()
	w.turns <- struct{}{}
	defer func() { <-w.turns }()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", file)
	cmd.Env = append(env, "PATH="+os.Getenv("PATH"), "HOME="+t.TempDir(), "CHROMIUM="+w.chromium, "SCREENSHOTS="+w.shots,
		"TOLLGATE_URL="+w.url, "OPERATOR_TOKEN="+testAdminToken, "TENANT="+one.tenant, "TENANT_TOKEN="+one.token,
		"KEY_ALICE="+one.alice, "KEY_BOB="+one.bob, "PROVIDER_URL="+w.provider.URL, "PROVIDER_KEY="+providertest.Key,
		"PICTURE="+os.Getenv("PICTURE"))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it ends its browser
	cmd.WaitDelay = 10 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("%v\n%s\nThe program has logged:\n%s", err, &out, lastLines(w.log.String(), 20))
		return
	}
	t.Log(&out)
}

// lastLines returns the last n lines of a text.
func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "\n")
}
