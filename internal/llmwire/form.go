package llmwire

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"tollgate/internal/strict"
)

const (
	maxFormFields  = 256     // of a form
	maxFieldHeader = 4 << 10 // bytes of the header of a field
	maxFieldName   = 256     // bytes
	maxBoundary    = 70      // bytes (RFC 2046, section 5.1.1)
)

// A formField is a field of a form.
type formField struct {
	name     string
	isFile   bool
	fileName string
	header   span // without the line end behind it
	value    span
}

// ReadForm reads the body of a request that is a form (multipart/form-data, RFC 7578), whose Content-Type is given with
// all of its values. The Request keeps the body, so nobody may change it afterwards.
//
// A form can be written so that two parsers find other fields in it, and a provider may have any parser. So a form must
// be as the usual clients write it. Text around the fields, folded or unusual header lines, encodings, escaped quotes,
// and the boundary anywhere but between two fields are refused.
//
// The error is a sentence for the client (400 Bad Request). It means that the body is no such form, has more than 256
// fields or no file, has a field twice whose name does not end in [], has one in another case than the field that is
// read, or has an invalid value in a field that is read.
func ReadForm(format Format, contentType []string, body []byte) (*Request, error) {
	boundary, ok := formBoundary(contentType)
	if !ok {
		return nil, errors.New("Content-Type must be multipart/form-data with a boundary")
	}
	r := newRequest(format, body)
	r.delimiter = "\r\n--" + boundary
	if err := r.readFields(); err != nil {
		//lint:ignore ST1005 a sentence for the client
		return nil, fmt.Errorf("Body is not a form that every server reads alike: %w", err)
	}
	for i := range r.fields {
		r.readField(&r.fields[i])
	}
	if _, exists := r.at[memberName{"", "file"}]; !exists {
		r.fail("file is missing")
	}
	return r, r.err
}

// Fields returns the names of the fields of a form and their values, each name before its value. It is nil if the body
// is no form.
func (r *Request) Fields() (all [][]byte) {
	for _, f := range r.fields {
		all = append(all, []byte(f.name), r.body[f.value.from:f.value.to])
	}
	return all
}

// formBoundary returns the boundary in a Content-Type. Other parameters are refused, and so are unusual spellings.
func formBoundary(contentType []string) (boundary string, ok bool) {
	if len(contentType) != 1 {
		return "", false
	}
	mediaType, parameter, _ := strings.Cut(contentType[0], ";")
	name, value, _ := strings.Cut(parameter, "=")
	if !strings.EqualFold(strings.Trim(mediaType, " "), "multipart/form-data") ||
		!strings.EqualFold(strings.TrimLeft(name, " "), "boundary") {
		return "", false
	}
	others := "'_-+." // beside letters and digits; more of them in quotes
	value = strings.TrimRight(value, " ")
	if inner, isQuoted := strings.CutPrefix(value, `"`); isQuoted {
		others += "(),/:=?"
		if value, ok = strings.CutSuffix(inner, `"`); !ok {
			return "", false
		}
	}
	for i := range len(value) {
		if c := value[i]; !strict.IsWord(c) && strings.IndexByte(others, c) < 0 {
			return "", false
		}
	}
	return value, 0 < len(value) && len(value) <= maxBoundary
}

// readFields finds the fields of the form.
func (r *Request) readFields() error {
	delimiter := []byte(r.delimiter)
	dashes := delimiter[len("\r\n"):]
	if !bytes.HasPrefix(r.body, dashes) {
		return errors.New("it must begin with the boundary")
	}
	for at := len(dashes); ; {
		rest := r.body[at:]
		if string(rest) == "--" || string(rest) == "--\r\n" {
			return nil
		}
		if len(r.fields) == maxFormFields {
			return fmt.Errorf("it has more than %d fields", maxFormFields)
		}
		size := bytes.Index(rest, dashes) // anywhere, even where a strict parser finds no boundary
		if size < len("\r\n") || string(rest[size-len("\r\n"):size]) != "\r\n" {
			return errors.New("it must have its boundary between two lines, and end with it")
		}
		field, err := readFormField(rest[:size-len("\r\n")])
		if err != nil {
			return err
		}
		field.header = span{at + field.header.from, at + field.header.to}
		field.value = span{at + field.value.from, at + field.value.to}
		r.fields = append(r.fields, field)
		at += size + len(dashes)
	}
}

// readFormField reads what is between two boundaries. Its spans are those in part.
func readFormField(part []byte) (f formField, err error) {
	const end = "\r\n\r\n"
	size := bytes.Index(part[:min(len(part), maxFieldHeader)], []byte(end))
	if size < 0 || string(part[:2]) != "\r\n" {
		return f, fmt.Errorf("a field has no header of at most %d bytes, or no line behind its boundary", maxFieldHeader)
	}
	f.header, f.value = span{len("\r\n"), max(size, len("\r\n"))}, span{size + len(end), len(part)}
	seen := make(map[string]bool, 4)
	for line := range strings.SplitSeq(string(part[f.header.from:f.header.to]), "\r\n") {
		name, value, found := strings.Cut(line, ":")
		name, value = strings.ToLower(name), strings.Trim(value, " ")
		if seen[name] || strings.ContainsFunc(line, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			return f, errors.New("a field's header has a line twice, or a control character")
		}
		seen[name] = true
		if !found || !f.readHeader(name, value) {
			return f, fmt.Errorf("a field's header has a line %s that is not known, or has an unusual value",
				strict.Shorten(fmt.Sprintf("%q", name)))
		}
	}
	if f.name == "" {
		return f, errors.New("a field has no name")
	}
	return f, nil
}

// readHeader reads a line of a field's header, and reports whether any parser would read it so.
func (f *formField) readHeader(name, value string) bool {
	switch name {
	case "content-disposition":
		return f.readDisposition(value)
	case "content-type":
		kind, parameter, _ := strings.Cut(strings.ToLower(value), ";")
		isUTF8 := parameter == "" || strings.ReplaceAll(strings.TrimLeft(parameter, " "), `"`, "") == "charset=utf-8"
		return !strings.HasPrefix(kind, "multipart/") && !strings.HasPrefix(kind, "message/") &&
			(isUTF8 || strings.HasPrefix(kind, "audio/") || strings.HasPrefix(kind, "video/"))
	case "content-length":
		return value == fmt.Sprint(f.value.to-f.value.from)
	case "content-transfer-encoding":
		return slices.Contains([]string{"binary", "8bit", "7bit"}, strings.ToLower(value))
	}
	return false
}

// readDisposition reads form-data; name="…" or form-data; name="…"; filename="…", with or without quotes. A name in
// which there is anything that a parser might split or unescape is refused.
func (f *formField) readDisposition(value string) bool {
	kind, rest, _ := strings.Cut(value, ";")
	if !strings.EqualFold(strings.TrimRight(kind, " "), "form-data") {
		return false
	}
	for rest != "" {
		name, after, found := strings.Cut(strings.TrimLeft(rest, " "), "=")
		if !found {
			return false
		}
		var text string
		if inner, isQuoted := strings.CutPrefix(after, `"`); isQuoted {
			text, after, found = strings.Cut(inner, `"`)
			after = strings.TrimLeft(after, " ")
			if !found || after != "" && after[0] != ';' {
				return false
			}
			rest = strings.TrimPrefix(after, ";")
		} else {
			text, rest, _ = strings.Cut(after, ";")
			text = strings.TrimRight(text, " ")
			if strings.ContainsFunc(text, func(c rune) bool { return c != '.' && (c > '~' || !strict.IsWord(byte(c))) }) {
				return false
			}
		}
		if !f.setParameter(strings.ToLower(name), text) {
			return false
		}
	}
	return true
}

func (f *formField) setParameter(name, text string) bool {
	if text == "" || strings.Contains(text, ";") || strings.HasSuffix(text, `\`) || !utf8.ValidString(text) {
		return false
	}
	switch {
	case name == "name" && f.name == "":
		f.name = text
		isOdd := strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c > '~' || c == '\\' || c == '%' })
		return len(text) <= maxFieldName && !isOdd
	case name == "filename" && !f.isFile:
		f.isFile, f.fileName = true, text
		return true
	}
	return false
}

// readField reads one field of a form.
func (r *Request) readField(f *formField) {
	member := memberName{"", f.name}
	if _, exists := r.at[member]; exists && !strings.HasSuffix(f.name, "[]") {
		r.fail("%s is duplicated", strict.Shorten(f.name))
	}
	r.at[member] = f.value
	value := r.body[f.value.from:f.value.to]
	if f.isFile != (f.name == "file") {
		r.fail("file must be a file, and no other field: %s", strict.Shorten(f.name))
	} else if !f.isFile && !utf8.Valid(value) {
		r.fail("%s is not valid UTF-8", strict.Shorten(f.name))
	}
	if !f.isFile && !strings.HasPrefix(f.name, "known_speaker_references") { // which count as sounds
		r.input.text += int64(len(value))
	}
	switch r.rules.members.of([]byte(f.name)) {
	case known:
	case ruled:
		r.readRuledField(f, value)
	default:
		// Some servers ignore case, or read model[] and model[0] as model.
		base, _, _ := strings.Cut(strings.ToLower(f.name), "[")
		if r.rules.members.of([]byte(base)) == ruled {
			r.fail("%s must be spelled %s", strict.Shorten(f.name), base)
		}
		r.addUnknown(f.name)
	}
}
