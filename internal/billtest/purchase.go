package billtest

import (
	"encoding/json"
	"fmt"
	"math/big"
	"math/rand/v2"
	"strings"
	"unicode/utf16"
)

// A Kind is a kind of service whose responses say so little of what they cost that no Reading of them is needed.
type Kind struct {
	Name    string // a member of providers
	Path    string // that ends the URL of an endpoint
	Streams bool   // responses can be streams
	make    func(p *Purchase)
}

// Kinds returns the kinds of services. A further one is a row here.
func Kinds() []Kind {
	return []Kind{
		{"embeddings", "/embeddings", false, (*Purchase).makeEmbeddings},
		{"moderation", "/moderations", false, (*Purchase).makeModeration},
		{"images", "/images/generations", true, (*Purchase).makeImages},
		{"transcription", "/audio/transcriptions", true, (*Purchase).makeTranscript},
		{"transcription", "/audio/translations", false, (*Purchase).makeTranscript},
		{"speech", "/audio/speech", true, (*Purchase).makeSpeech},
	}
}

// A Purchase is a request to a service of a Kind, and the response to it.
type Purchase struct {
	Kind
	*maker
	Seed        uint64
	Model       Model // the default one
	ContentType string
	Request     string
	Type        string   // of the response
	Parts       []string // of the response, as they are sent
	said        int      // how many parts have to come until all is said of the cost

	reported Counts // what the response says; nil if it says nothing
	fixed    Counts // what the request costs, whatever the response says; nil if that counts
	estimate int64  // tokens of the input, if the response says nothing; 0: it costs what is held
	relayed  bool   // as it comes: a long response that breaks off has begun
}

// second and character are what sounds cost beside tokens.
const (
	second    = "second"
	character = "character"
)

// fillerBytes is how long a response is at least that is sent before it is complete. Of others, up to 64 KiB are kept
// until then.
const fillerBytes = 200 << 10

// NewPurchase returns the purchase that a seed stands for.
func NewPurchase(k Kind, seed uint64, stream bool) *Purchase {
	m := &maker{Rand: rand.New(rand.NewPCG(seed, uint64(len(k.Path)))), stream: stream}
	p := &Purchase{Kind: k, maker: m, Seed: seed, ContentType: "application/json", Type: "application/json"}
	p.Model = Model{Name: "m", Prices: m.prices()}
	for _, kind := range []string{second, character} {
		if m.in(2) {
			p.Model.Prices[kind] = m.upTo(20_000_000)
		}
	}
	m.input, m.output = 1+m.upTo(3000), 1+m.upTo(3000)
	k.make(p)
	return p
}

// Config returns the members of an endpoint in a config, but for its URL.
func (p *Purchase) Config() string {
	return fmt.Sprintf(`"default_model":"m","models":{"m":{%s}}`, strings.Join(p.Model.Prices.config(), ","))
}

// String says what a test needs to know of a purchase that it fails with.
func (p *Purchase) String() string {
	s := fmt.Sprintf("%s, seed %d, stream %v: {%s}\nrequest %q\n", p.Path, p.Seed, p.stream, p.Config(), p.Request)
	for i, part := range p.Parts {
		s += fmt.Sprintf("%d: %.300q\n", i, part)
	}
	return s
}

// Cost returns what is charged if the first parts of the response came, of all or until the connection broke.
func (p *Purchase) Cost(parts int, held int64) int64 {
	bytes := len(strings.Join(p.Parts[:parts], ""))
	isWhole := parts == len(p.Parts)
	begun := bytes > 0 && (p.Name == "speech" || p.stream || p.relayed && bytes > fillerBytes)
	succeeds := isWhole || p.Type == "audio/mpeg" // which is charged when it begins
	switch {
	case !isWhole && !begun:
		return 0
	case p.fixed != nil:
		return p.cost(p.fixed, succeeds)
	case parts >= p.said && p.reported != nil && (p.Name != "transcription" || p.isPriced()):
		return p.cost(p.reported, succeeds)
	case p.estimate > 0:
		return min(p.cost(Counts{input: p.estimate}, succeeds), held)
	}
	return held
}

// isPriced reports whether what is reported of a sound has a price in its unit, or sounds have none at all.
func (p *Purchase) isPriced() bool {
	isFree := p.worth(Counts{second: 1}).Sign() == 0
	for _, kind := range append([]string{input, output}, append(inputKinds, outputKinds...)...) {
		isFree = isFree && p.Model.pricesOf(1)[kind] == 0
	}
	return isFree || p.worth(p.reported).Sign() > 0
}

// worth returns the price of what was used, in millionths.
func (p *Purchase) worth(used Counts) *big.Int {
	sum := p.Model.millionths(used)
	for _, kind := range []string{second, character} {
		price, ok := p.Model.Prices[kind]
		if !ok {
			price = 1_000_000
		}
		sum.Add(sum, new(big.Int).Mul(big.NewInt(used[kind]), big.NewInt(price)))
	}
	return sum
}

// cost returns the price of what was used and, if it succeeds, of a request, in tokens of the balance, rounded up.
func (p *Purchase) cost(used Counts, succeeds bool) int64 {
	sum := p.worth(used)
	if succeeds {
		sum.Add(sum, big.NewInt(p.Model.Prices[request]))
	}
	sum.Add(sum, big.NewInt(999_999)).Div(sum, big.NewInt(1_000_000))
	return sum.Int64()
}

// respond makes a response of an object with the members and the usage, unless that is "". It is sent in three parts,
// of which the second is the usage, or in two, of which one is short.
func (p *Purchase) respond(usage string, members ...string) {
	if p.relayed && p.in(2) {
		members = append(members, member("filler", `"`+strings.Repeat("x", 2*fillerBytes)+`"`))
	}
	if usage == "" {
		body := p.object(members...)
		at := oneOf(p.maker, 1, len(body)-1)
		p.Parts, p.said = []string{body[:at], body[at:]}, 2
		return
	}
	body := p.object(append(members, member("usage", usage))...)
	before, after, _ := strings.Cut(body, usage)
	p.Parts, p.said = []string{before, usage, after}, 2
}

func (p *Purchase) makeEmbeddings() {
	var said string
	for range p.IntN(4) {
		said += p.phrase() + ","
	}
	said += p.phrase()
	var texts []string
	_ = json.Unmarshal([]byte("["+said+"]"), &texts) // it was made just now
	p.Request = p.object(member("input", "["+said+"]"), p.maybe("encoding_format", `"base64"`))
	if p.in(4) { // numbers of tokens
		p.Request, p.estimate = p.object(member("input", "[1,22,333]")), 3
	} else {
		p.estimate = int64(len(strings.Join(texts, ""))+3) / 4
	}
	p.relayed = true
	usage := ""
	if !p.in(4) {
		p.reported = Counts{input: p.input}
		usage = p.object(p.count("prompt_tokens", p.input), p.maybe("total_tokens", p.number(p.input)))
	}
	p.respond(usage, member("data", `[{"embedding":[0.5,-1e-3],"index":0}]`), p.maybe("object", `"list"`))
}

func (p *Purchase) makeModeration() {
	p.Request, p.fixed = p.object(member("input", p.phrase())), Counts{}
	p.respond("", member("results", `[{"flagged":false}]`), p.maybe("id", `"modr-1"`))
}

func (p *Purchase) makeImages() {
	image := member("b64_json", `"AAAA"`)
	usage := ""
	if !p.in(4) {
		ofImages := p.upTo(p.input)
		p.reported = Counts{input: p.input, imageInput: ofImages, output: p.output, imageOutput: p.output}
		usage = p.object(p.count("input_tokens", p.input), p.count("output_tokens", p.output),
			member("input_tokens_details",
				p.object(p.count("image_tokens", ofImages), p.count("text_tokens", p.input-ofImages))))
	}
	if !p.stream {
		p.Request, p.relayed = p.object(member("prompt", p.phrase()), p.maybe("n", fmt.Sprint(1+p.IntN(3)))), true
		p.respond(usage, member("data", "[{"+image+"}]"))
		return
	}
	p.Request = p.object(member("prompt", p.phrase()), member("stream", "true"), member("partial_images", "3"))
	p.streamOf(p.IntN(4), "image_generation.partial_image", image, "image_generation.completed", usage)
}

// streamOf makes a stream of n events of a kind with a member, and one that ends it, with the usage if there is one.
func (p *Purchase) streamOf(n int, kind, content, end, usage string) {
	p.Type = "text/event-stream"
	style := p.style()
	for range n {
		p.Parts = append(p.Parts, p.event(style, p.object(member("type", p.quoted(kind)), content)))
	}
	last := []string{member("type", p.quoted(end))}
	if usage != "" {
		last = append(last, member("usage", usage))
	}
	p.Parts = append(p.Parts, p.event(style, p.object(last...)))
	p.said = len(p.Parts)
}

func (p *Purchase) makeTranscript() {
	const boundary = "x-8f3"
	p.ContentType = "multipart/form-data; boundary=" + boundary
	field := func(name, value string) string {
		return "--" + boundary + "\r\nContent-Disposition: form-data; name=" + name + "\r\n\r\n" + value + "\r\n"
	}
	p.Request = field(`"file"; filename="a.mp3"`, strings.Repeat("s", 1+p.IntN(9000)))
	if p.stream {
		p.Request += field(`"stream"`, "true")
	}
	p.Request += "--" + boundary + "--\r\n"
	usage := ""
	switch p.IntN(4) {
	case 0:
		ofSound := p.upTo(p.input)
		p.reported = Counts{input: p.input, audioInput: ofSound, output: p.output}
		usage = p.object(member("type", `"tokens"`), p.count("input_tokens", p.input), p.count("output_tokens", p.output),
			member("input_token_details", p.object(p.count("audio_tokens", ofSound), p.count("text_tokens", p.input-ofSound))))
	case 1:
		p.reported = Counts{second: p.input}
		usage = p.object(member("type", `"duration"`), p.count("seconds", p.input))
	}
	if p.stream {
		p.streamOf(p.IntN(4), "transcript.text.delta", member("delta", p.phrase()), "transcript.text.done", usage)
		return
	}
	duration := ""
	if usage == "" && p.in(2) {
		p.reported, duration = Counts{second: p.input}, p.count("duration", p.input)
	}
	p.respond(usage, member("text", p.phrase()), duration)
	p.said = len(p.Parts)
}

func (p *Purchase) makeSpeech() {
	said := p.phrase() // with each character as it is, or as an escape
	var spoken string
	_ = json.Unmarshal([]byte(said), &spoken) // it was made just now
	n := int64(0)
	for _, unit := range utf16.Encode([]rune(spoken)) {
		if unit < 0xdc00 || unit > 0xdfff { // the second half of a pair
			n++
		}
	}
	p.fixed = Counts{character: n}
	if p.stream {
		p.Request = p.object(member("input", said), member("stream_format", `"sse"`))
		p.streamOf(1+p.IntN(3), "speech.audio.delta", member("audio", `"AAAA"`), "speech.audio.done",
			p.object(p.count("input_tokens", p.input), p.count("output_tokens", p.output)))
		return
	}
	p.Request, p.Type = p.object(member("input", said), p.maybe("voice", `"v"`)), "audio/mpeg"
	for range 1 + p.IntN(3) {
		p.Parts = append(p.Parts, strings.Repeat("\xff\xfb\x90", 1+p.IntN(1000)))
	}
}
