package llmwire

import (
	"bytes"
	"fmt"
	"mime"
	"mime/multipart"
	"runtime"
	"strings"
	"testing"
)

const formType = "multipart/form-data; boundary=xYz"

// field returns a part of a form with the boundary xYz: its header lines, and its value.
func field(value string, header ...string) string {
	return "--xYz\r\n" + strings.Join(header, "\r\n") + "\r\n\r\n" + value + "\r\n"
}

func textField(name, value string) string {
	return field(value, `Content-Disposition: form-data; name="`+name+`"`)
}

func fileField(name, value string) string {
	return field(value, `Content-Disposition: form-data; name="file"; filename="`+name+`"`, "Content-Type: audio/mpeg")
}

// form returns a form with a file of 1,500 bytes and the given parts.
func form(parts ...string) string {
	return strings.Join(parts, "") + fileField("a.mp3", strings.Repeat("a", 1500)) + "--xYz--\r\n"
}

func readForm(format Format, contentType, body string) (*Request, error) {
	return ReadForm(format, []string{contentType}, []byte(body))
}

func TestReadForm(t *testing.T) {
	t.Parallel()
	file := strings.Repeat("a", 1500)
	for name, test := range map[string]struct{ body, want string }{
		"a file alone":    {form(), "model=, 2 seconds"},
		"a model":         {form(textField("model", "whisper-1")), "model=whisper-1, 2 seconds"},
		"the model last":  {fileField("a.mp3", file) + textField("model", "m") + "--xYz--", "model=m, 2 seconds"},
		"an end":          {strings.TrimSuffix(form(), "\r\n"), "model=, 2 seconds"},
		"a stream":        {form(textField("stream", "true")), "model=, 2 seconds, stream"},
		"Python's stream": {form(textField("stream", "True")), "model=, 2 seconds, stream"},
		"no stream":       {form(textField("stream", "false")), "model=, 2 seconds"},
		"a format":        {form(textField("response_format", "text")), "model=, 2 seconds, as text"},
		"known": {form(textField("language", "en"), textField("prompt", "--xY\r\n"), textField("temperature", "0"),
			textField("include[]", "logprobs"),
			textField("include[]", "a"), textField("chunking_strategy[type]", "server_vad")), "model=, 2 seconds"},
		"unknown": {form(textField("url", "https://a.example"), textField("max_completion_tokens", "1")),
			"model=, 2 seconds, unknown [url max_completion_tokens]"},
		"references": {form(textField("known_speaker_references[]", "data:audio/wav;base64,"+file),
			textField("known_speaker_references[]", "data:")), "model=, 6 seconds"},

		"no quotes": {form(field("m", "content-disposition:form-data; name=model")), "model=m, 2 seconds"},
		"other order and case": {form(field("m", `Content-Type: text/plain; charset="UTF-8"`, `CONTENT-DISPOSITION: Form-Data; Name="model" `,
			"Content-Length: 1", "Content-Transfer-Encoding: 8bit")), "model=m, 2 seconds"},
		"a file name of any kind": {field(file, `Content-Disposition: form-data; filename="C:\ü 'a'=%22.ogg"; name="file"`,
			"Content-Type: audio/ogg; codecs=opus") + "--xYz--", "model=, 2 seconds"},
		"a file's dashes": {fileField("a.mp3", "\r\n--xY\r\n--\r\n-xYz--\r\n\n") + "--xYz--", "model=, 1 seconds"},
		"an empty file":   {fileField("a.mp3", "") + "--xYz--", "model=, 0 seconds"},
	} {
		r, err := readForm(OpenAITranscriptions, formType, test.body)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := fmt.Sprintf("model=%s, %d seconds", r.Model, r.Seconds)
		if r.Stream {
			got += ", stream"
		}
		if r.WantsText() {
			got += ", as text"
		}
		if len(r.Unknown) > 0 {
			got += fmt.Sprintf(", unknown %v", r.Unknown)
		}
		if got != test.want {
			t.Errorf("%s: got %s\nwant %s", name, got, test.want)
		}
	}
}

// What two parsers might read differently is refused.
func TestRefusedForms(t *testing.T) {
	t.Parallel()
	const isOdd = "content-disposition"
	disposition := `Content-Disposition: form-data; name="model"`
	many := strings.Repeat(textField("include[]", "a"), maxFormFields)
	for name, test := range map[string]struct{ body, want string }{
		"empty":               {"", "begin with the boundary"},
		"JSON":                {`{"model":"m"}`, "begin with the boundary"},
		"a preamble":          {"a\r\n" + form(), "begin with the boundary"},
		"an empty preamble":   {"\r\n" + form(), "begin with the boundary"},
		"an epilogue":         {form() + "a", "end with it"},
		"a second form":       {form() + form(), "no line behind"},
		"no end":              {strings.TrimSuffix(form(), "--\r\n"), "end with it"},
		"half an end":         {strings.TrimSuffix(form(), "-\r\n"), "end with it"},
		"no fields":           {"--xYz--\r\n", "file is missing"},
		"bare LF":             {strings.ReplaceAll(form(), "\r\n", "\n"), "end with it"},
		"a boundary after LF": {form(textField("prompt", "\n--xYz\r\n"+disposition+"\r\n\r\nm")), "boundary between two lines"},
		"a longer boundary":   {form(textField("prompt", "\r\n--xYzA\r\n")), "no line behind"},
		"padding":             {strings.Replace(form(), "--xYz\r\n", "--xYz \r\n", 1), "no line behind"},
		"in a line":           {form(textField("prompt", "a --xYz")), "boundary between two lines"},
		"a line before":       {"--xYz\r\n--xYz\r\n", "no line behind"},

		"no header":             {form("--xYz\r\n\r\nm\r\n"), "not known"},
		"no blank line":         {form("--xYz\r\n" + disposition + "\r\n"), "no header"},
		"a long header":         {form(field("m", disposition, "Content-Type: "+strings.Repeat("a", maxFieldHeader))), "no header"},
		"a folded line":         {form(field("m", "Content-Disposition: form-data;\r\n name=\"model\"")), "not known"},
		"a line folded by tab":  {form(field("m", "Content-Disposition: form-data;\r\n\tname=\"model\"")), "control character"},
		"LF in a line":          {form(field("m", disposition+"\nContent-Type: a")), "control character"},
		"CR in a line":          {form(field("m", disposition+"\rContent-Type: a")), "control character"},
		"NUL in a line":         {form(field("m", `Content-Disposition: form-data; name="model`+"\x00\"")), "control character"},
		"two lines":             {form(field("m", disposition, strings.ToLower(disposition))), "twice"},
		"an unknown line":       {form(field("m", disposition, "Content-Encoding: gzip")), "content-encoding"},
		"an encoding":           {form(field("bQ==", disposition, "Content-Transfer-Encoding: base64")), "content-transfer-encoding"},
		"quoted-printable":      {form(field("=6D", disposition, "Content-Transfer-Encoding: quoted-printable")), "content-transfer-encoding"},
		"a charset":             {form(field("m", disposition, "Content-Type: text/plain; charset=utf-16")), "content-type"},
		"two charsets":          {form(field("m", disposition, "Content-Type: text/plain; charset=utf-8; charset=utf-7")), "content-type"},
		"nested":                {form(field("m", disposition, "Content-Type: multipart/mixed; boundary=a")), "content-type"},
		"another length":        {form(field("m", disposition, "Content-Length: 2")), "content-length"},
		"no colon":              {form(field("m", disposition, "a")), "not known"},
		"a name alone":          {form(field("m", disposition, "Content-Type")), "not known"},
		"a space before colon":  {form(field("m", `Content-Disposition : form-data; name="model"`)), "not known"},
		"attachment":            {form(field("m", `Content-Disposition: attachment; name="model"`)), isOdd},
		"two names":             {form(field("m", `Content-Disposition: form-data; name="model"; name="prompt"`)), isOdd},
		"two names, one empty":  {form(field("m", `Content-Disposition: form-data; name=""; name="model"`)), isOdd},
		"name*":                 {form(field("m", `Content-Disposition: form-data; name*=UTF-8''model`)), isOdd},
		"filename*":             {form(field("m", `Content-Disposition: form-data; name="file"; filename*=UTF-8''a.mp3`)), isOdd},
		"two file names":        {form(field("m", `Content-Disposition: form-data; name="file"; filename="a.mp3"; filename="b.wav"`)), isOdd},
		"an escaped quote":      {form(field("m", `Content-Disposition: form-data; name="prompt"; filename="a\"; name="model"`)), isOdd},
		"a semicolon in quotes": {form(field("m", `Content-Disposition: form-data; name="file"; filename="a; name=model"`)), isOdd},
		"an open quote":         {form(field("m", `Content-Disposition: form-data; name="model`)), isOdd},
		"text behind a quote":   {form(field("m", `Content-Disposition: form-data; name="mod"el`)), isOdd},
		"a quote within":        {form(field("m", `Content-Disposition: form-data; name=mod"el"`)), isOdd},
		"a parameter too many":  {form(field("m", `Content-Disposition: form-data; name="model"; size=1`)), isOdd},
		"a percent sign":        {form(textField("mode%6c", "m")), isOdd},
		"a backslash":           {form(textField(`mo\del`, "m")), isOdd},
		"a space in a name":     {form(textField("model ", "m")), isOdd},
		"letters like others":   {form(textField("ｍodel", "m")), isOdd},
		"a long name":           {form(textField(strings.Repeat("a", maxFieldName+1), "m")), isOdd},
		"no name":               {form(field("m", "Content-Disposition: form-data")), "has no name"},
		"no disposition":        {form(field("m", "Content-Type: text/plain")), "has no name"},

		"a field twice":        {form(textField("model", "a"), textField("model", "b")), "model is duplicated"},
		"a known field twice":  {form(textField("language", "a"), textField("language", "b")), "language is duplicated"},
		"an unknown one twice": {form(textField("a", "a"), textField("a", "b")), "a is duplicated"},
		"two files":            {form(fileField("b.mp3", "b")), "file is duplicated"},
		"no file":              {textField("model", "m") + "--xYz--", "file is missing"},
		"a file as text":       {textField("file", "m") + "--xYz--", "file must be a file"},
		"a model as a file":    {form(field("m", disposition+`; filename="m"`)), "no other field: model"},
		"another case":         {form(textField("Model", "m")), "must be spelled model"},
		"an array of models":   {form(textField("model[]", "m")), "must be spelled model"},
		"an object":            {form(textField("STREAM[0]", "true")), "must be spelled stream"},
		"no UTF-8":             {form(textField("prompt", "\xff")), "not valid UTF-8"},
		"a model without name": {form(textField("model", "")), "model must be"},
		"a model of lines":     {form(textField("model", "a\r\nb")), "model must be"},
		"a stream of 1":        {form(textField("stream", "1")), "stream must be true or false"},
		"an unknown format":    {form(textField("response_format", "ass")), "response_format must be one of"},
		"a format in capitals": {form(textField("response_format", "SRT")), "response_format must be one of"},
		"many fields":          {form(many), "more than 256 fields"},
	} {
		r, err := readForm(OpenAITranscriptions, formType, test.body)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: accepted %v, %v, want %s", name, r != nil, err, test.want)
		}
	}
}

// Fields of the other formats are unknown, and a translation is never streamed.
func TestTranslationFields(t *testing.T) {
	t.Parallel()
	body := form(textField("model", "m"), textField("prompt", "p"), textField("language", "en"), textField("stream", "true"))
	r, err := readForm(OpenAITranslations, formType, body)
	if err != nil || fmt.Sprint(r.Unknown) != "[language stream]" || r.Stream {
		t.Errorf("unknown %v, %v", r, err)
	}
}

func TestFormBoundary(t *testing.T) {
	t.Parallel()
	const good = "multipart/form-data; boundary="
	for contentType, want := range map[string]string{
		formType: "xYz",
		`Multipart/Form-Data;Boundary="a(),/:=?'b"`: "a(),/:=?'b",
		good + "----WebKitFormBoundary0a":           "----WebKitFormBoundary0a",
		good + strings.Repeat("a", 70):              strings.Repeat("a", 70),
		good + strings.Repeat("a", 71):              "",
		good:                                        "",
		good + `""`:                                 "",
		good + `"a`:                                 "",
		good + `a"`:                                 "",
		good + `"a\b"`:                              "",
		good + `"a "`:                               "",
		good + "a=b":                                "",
		good + "a; charset=utf-8":                   "",
		good + "a; boundary=b":                      "",
		good + "a,b":                                "",
		good + "ü":                                  "",
		"multipart/form-data":                       "",
		"multipart/form-data; charset=a; boundary=b":  "",
		"multipart/form-data; boundary*=UTF-8''a":     "",
		"multipart/mixed; boundary=a":                 "",
		"application/json":                            "",
		"application/x-www-form-urlencoded; boundary": "",
	} {
		got, ok := formBoundary([]string{contentType})
		if ok != (want != "") || ok && got != want {
			t.Errorf("%s: %q, %v, want %q", contentType, got, ok, want)
		}
	}
	if _, ok := formBoundary([]string{formType, formType}); ok {
		t.Error("two values are accepted")
	}
	if _, ok := formBoundary(nil); ok {
		t.Error("no value is accepted")
	}
}

// A form is forwarded byte for byte, but for what changes, and for headers that some servers read otherwise.
func TestRewriteForm(t *testing.T) {
	t.Parallel()
	const modelHeader = `Content-Disposition: form-data; name="model"`
	for name, test := range map[string]struct {
		body    string
		changes Changes
		want    string
	}{
		"the same model": {form(textField("model", "m")), Changes{Model: "m"}, form(textField("model", "m"))},
		"a model": {form(textField("model", "e/m"), textField("prompt", "p")), Changes{Model: "m"},
			form(textField("model", "m"), textField("prompt", "p"))},
		"the model last": {strings.TrimSuffix(form(), "--xYz--\r\n") + textField("model", "e/m") + "--xYz--", Changes{Model: "m"},
			strings.TrimSuffix(form(), "--xYz--\r\n") + textField("model", "m") + "--xYz--"},
		"a model is added": {form(), Changes{Model: "m"}, form(textField("model", "m"))},
		"text": {form(textField("response_format", "text")), Changes{Model: "m"},
			form(textField("model", "m"), textField("response_format", "json"))},
		"srt": {form(textField("response_format", "srt")), Changes{}, form(textField("response_format", "srt"))},
		"any file": {field("--xY\r\n", `content-disposition:FORM-DATA; filename=a;name=file;`, "Content-Length: 6") + "--xYz--", Changes{},
			field("--xY\r\n", `content-disposition:FORM-DATA; filename=a;name=file;`, "Content-Length: 6") + "--xYz--"},

		// Servers that take a field for a file, or do not find it, would choose the model themselves.
		"a type":      {form(field("m", modelHeader, "Content-Type: application/octet-stream")), Changes{}, form(textField("model", "m"))},
		"no quotes":   {form(field("m", "Content-Disposition: form-data; name=model")), Changes{}, form(textField("model", "m"))},
		"a semicolon": {form(field("m", modelHeader+";")), Changes{}, form(textField("model", "m"))},
		"in capitals": {form(field("m", "CONTENT-DISPOSITION:form-data;NAME=\"model\"")), Changes{}, form(textField("model", "m"))},
		"a length": {form(field("e/m", "Content-Length: 3", modelHeader), field("", `Content-Disposition: form-data; name=a `)),
			Changes{Model: "m"}, form(textField("model", "m"), textField("a", ""))},
		"an ID and a limit": {form(textField("model", "m")), Changes{Model: "m", SafetyID: "u", LimitMember: "max_tokens", Limit: 1},
			form(textField("model", "m"))},
	} {
		r, err := readForm(OpenAITranscriptions, formType, test.body)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := string(bytes.Join(r.Rewrite(test.changes), nil)); got != test.want {
			t.Errorf("%s: got %q\nwant %q", name, got, test.want)
		}
	}
}

// Reading a form copies neither the file nor the fields behind it, however many there are.
func TestReadFormMemory(t *testing.T) {
	body := []byte(fileField("a.mp3", strings.Repeat("\r\n--xY", 1<<20)) + strings.Repeat(textField("include[]", "a"), 200) +
		"--xYz--\r\n")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := ReadForm(OpenAITranscriptions, []string{formType}, body)
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; err != nil || got > 1<<20 {
		t.Errorf("%d bytes were allocated for a form of %d: %v", got, len(body), err)
	}
}

// The forms that clients write are accepted: those of Go, curl, browsers and Node.js, Python's httpx and requests, .NET
// and OkHttp.
func TestFormsOfClients(t *testing.T) {
	t.Parallel()
	var written bytes.Buffer
	w := multipart.NewWriter(&written)
	_ = w.WriteField("model", "m")
	file, _ := w.CreateFormFile("file", `ä "b".mp3`)
	_, _ = file.Write([]byte("a"))
	w.Close()
	form := func(boundary string, parts ...string) string {
		body := ""
		for _, part := range parts {
			body += "--" + boundary + "\r\n" + part + "\r\n"
		}
		return body + "--" + boundary + "--\r\n"
	}
	const model, file1 = "Content-Disposition: form-data; name=\"model\"\r\n\r\nm",
		"Content-Disposition: form-data; name=\"file\"; filename=\"a.mp3\"\r\nContent-Type: audio/mpeg\r\n\r\na"
	for name, test := range map[string]struct{ contentType, body string }{
		"Go, without quotes in the name": {w.FormDataContentType(), strings.ReplaceAll(written.String(), `\"b\"`, "b")},
		"curl": {"multipart/form-data; boundary=------------------------1859e2cbd7f12579",
			form("------------------------1859e2cbd7f12579", file1, model)},
		"WebKit": {"multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxk",
			form("----WebKitFormBoundary7MA4YWxk", model, file1)},
		"Firefox": {"multipart/form-data; boundary=----geckoformboundary5a9d", form("----geckoformboundary5a9d", model, file1)},
		"undici":  {"multipart/form-data; boundary=----formdata-undici-012345678901", form("----formdata-undici-012345678901", model, file1)},
		"httpx":   {"multipart/form-data; boundary=0123456789abcdef0123456789abcdef", form("0123456789abcdef0123456789abcdef", model, file1)},
		".NET": {`multipart/form-data; boundary="7c8f0f5e-5d2a-4a44"`, form("7c8f0f5e-5d2a-4a44",
			"Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=model\r\n\r\nm",
			"Content-Disposition: form-data; name=file; filename=a.mp3\r\nContent-Type: audio/mpeg\r\n\r\na")},
		"OkHttp": {"multipart/form-data; boundary=7c8f0f5e-5d2a-4a44", form("7c8f0f5e-5d2a-4a44",
			"Content-Disposition: form-data; name=\"model\"\r\nContent-Transfer-Encoding: binary\r\n"+
				"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 1\r\n\r\nm", file1)},
	} {
		if r, err := readForm(OpenAITranscriptions, test.contentType, test.body); err != nil || r.Model != "m" || r.Seconds != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Every form that is accepted has the same fields for the parser of the standard library.
func FuzzReadForm(f *testing.F) {
	f.Add(formType, form(textField("model", "m"), textField("include[]", "a")))
	f.Add(formType, fileField("a.mp3", "\r\n--xY")+"--xYz--")
	f.Add(`multipart/form-data; boundary="a:b"`, strings.ReplaceAll(form(), "xYz", "a:b"))
	f.Fuzz(func(t *testing.T, contentType, body string) {
		r, err := readForm(OpenAITranscriptions, contentType, body)
		if err != nil {
			return
		}
		_, parameters, err := mime.ParseMediaType(contentType)
		if err != nil {
			t.Fatalf("%q: %v", contentType, err)
		}
		reader := multipart.NewReader(strings.NewReader(body), parameters["boundary"])
		for fields := r.Fields(); ; fields = fields[2:] {
			part, err := reader.NextRawPart()
			if err != nil || len(fields) == 0 {
				if len(fields) > 0 || err == nil {
					t.Fatalf("%q has other fields than %q: %v", body, r.Fields(), err)
				}
				return
			}
			var value bytes.Buffer
			if _, err := value.ReadFrom(part); err != nil || part.FormName() != string(fields[0]) || value.String() != string(fields[1]) {
				t.Fatalf("%q: a field %q is %q, want %q: %v", body, part.FormName(), value.String(), fields, err)
			}
		}
	})
}

// A model may read the text of all fields, which is held as far as it is long.
func TestHeldFields(t *testing.T) {
	long := strings.Repeat("x", freeFieldBytes-3)
	for _, test := range []struct {
		body string
		want int64
	}{
		{form(), 0},
		{form(textField("model", "m"), textField("prompt", long)), 0},
		{form(textField("model", "m"), textField("prompt", long+"xx")), 0},
		{form(textField("model", "m"), textField("prompt", long+"xxx")), 1},
		{form(textField("prompt", long), textField("keywords[]", "123"), textField("keywords[]", "1234567890")), 4},
		{form(textField("invented", strings.Repeat("x", freeFieldBytes)), textField("language", "en")), 1},
		{form(textField("known_speaker_references[]", "data:audio/wav;base64,"+long+long)), 0},
	} {
		r, err := readForm(OpenAITranscriptions, formType, test.body)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.HeldInput(Holding{BytesPerToken: 3}); got != test.want {
			t.Errorf("%.200q: %d tokens are held, want %d", test.body, got, test.want)
		}
	}
}
