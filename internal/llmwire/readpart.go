package llmwire

import (
	"strings"

	"tollgate/internal/strict"
)

const (
	maxKept      = 16 << 10 // bytes that are kept of an object that is read in parts
	maxKeptText  = 512      // bytes of a string or number in it
	maxKeptName  = 192      // bytes of a name in it
	maxKeptDepth = 16       // arrays and objects in it that are inside each other
)

// ReadPart reads the next part of a response, or of the data of an event, that is too long for Read. All of it counts
// as content. What else Read would read, such as the usage, is added with the part that has the end of the object. That
// takes time linear in the bytes that are read, and at most 16 KiB of memory, beyond which nothing is added.
func (r *Report) ReadPart(part []byte) {
	if len(strict.SkipSpace(part)) == 0 {
		return
	}
	r.AddUnread(int64(len(part)))
	if r.parts == nil {
		r.parts = new(partReader)
	}
	p := r.parts
	p.objects++
	p.bytes += int64(len(part))
	p.read(r, part)
	if p.repeats { // what is said again counts only as far as it is more
		r.ContentEvents, r.contentBytes = r.ContentEvents-p.objects, r.contentBytes-p.bytes
		p.objects, p.bytes = 0, 0
		if p.output > r.contentBytes {
			r.ContentEvents, r.contentBytes = max(r.ContentEvents, 1), p.output
		}
	}
}

// ReadUsage reads the next part of a response as ReadPart does, for its usage alone: however much has come counts as
// one piece of content. EndUsage is called after the last part.
func (r *Report) ReadUsage(part []byte) {
	r.ContentEvents = 1
	if r.parts == nil {
		r.parts = new(partReader)
	}
	r.parts.read(r, part)
}

// EndUsage returns an error unless what ReadUsage has read is one JSON object, with its end. Of an object without its
// end it adds what has come.
func (r *Report) EndUsage() error {
	p := r.parts
	if p == nil || r.Objects != 1 || p.depth > 0 || p.open > 0 || p.place != between || len(p.kept) > 0 {
		if p != nil && p.depth > 0 && !p.lost {
			_, _ = r.Read(p.completed())
		}
		return errNoObject
	}
	return nil
}

// completed returns what is kept of an object whose end is missing, with null for the value that is being read.
func (p *partReader) completed() []byte {
	if (p.place == inString || p.place == inScalar) && !p.skipping {
		p.kept = append(p.kept[:p.from], "null"...)
	}
	for ; p.depth > 0; p.depth-- {
		p.kept = append(p.kept, p.ends[p.depth-1])
	}
	return p.kept
}

// endParts gives up an object whose end has not come.
func (r *Report) endParts() {
	if r.parts != nil {
		*r.parts = partReader{kept: r.parts.kept[:0], name: r.parts.name[:0]}
	}
}

// A partReader shortens a JSON object to the members that Report.Read reads, but for the content, while it comes. It
// expects the object to be valid: Read checks what is left of it.
type partReader struct {
	kept []byte // the shortened object
	lost bool   // there was more to keep than there is room for

	around [maxKeptDepth]*jsonShape[Report] // of the arrays and objects that are open in kept
	ends   [maxKeptDepth]byte               // with which these end
	depth  int                              // how many these are

	place    partPlace
	escaped  bool   // the next byte belongs to an escape
	name     []byte // of the next value, as it is spelled, with its quotes
	hasName  bool   // the name was read
	from     int    // where in kept the string or scalar that is read starts
	skipping bool   // the value that is read is not kept
	open     int    // arrays and objects that are open in it

	objects, bytes int64 // that the Report has counted as content of the object
	repeats        bool  // the object has a response or an item of one, whose content came before it
	inOutput       bool  // the value that is read is such content
	output         int64 // bytes of such values
}

// A partPlace is where the next byte of an object is.
type partPlace uint8

const (
	between partPlace = iota
	inName
	inString
	inScalar // a number or a word
)

func (p *partReader) read(r *Report, part []byte) {
	for len(part) > 0 {
		n, inOutput := 1, p.inOutput
		switch {
		case p.place == inName || p.place == inString:
			n = p.readString(part)
		case p.place == inScalar:
			n = p.readScalar(part)
		case p.skipping:
			n = p.skip(part)
		default:
			p.readByte(r, part[0])
		}
		if inOutput {
			p.output += int64(n)
			p.inOutput = p.skipping
		}
		part = part[n:]
	}
}

// readString reads on in a string or name, up to its end or an escape, and returns how many bytes it has read.
func (p *partReader) readString(part []byte) (n int) {
	if p.escaped {
		p.escaped = false
		p.keepText(part[:1])
		return 1
	}
	for n < len(part) && part[n] != '"' && part[n] != '\\' {
		n++
	}
	if n == len(part) {
		p.keepText(part)
		return n
	}
	n++
	p.keepText(part[:n])
	if p.escaped = part[n-1] == '\\'; !p.escaped {
		p.hasName = true
		p.place, p.skipping = between, p.open > 0
	}
	return n
}

// readScalar does what readString does in a scalar.
func (p *partReader) readScalar(part []byte) (n int) {
	for n < len(part) && strings.IndexByte(",]} \t\n\r", part[n]) < 0 {
		n++
	}
	p.keepText(part[:n])
	if n < len(part) {
		p.place, p.skipping = between, p.open > 0
	}
	return n
}

// skip does what readString does in an array or object that is not kept.
func (p *partReader) skip(part []byte) (n int) {
	for n < len(part) {
		n++
		switch part[n-1] {
		case '"':
			p.place = inString
			return n
		case '{', '[':
			p.open++
		case '}', ']':
			if p.open--; p.open == 0 {
				p.skipping = false
				return n
			}
		}
	}
	return n
}

// readByte reads a byte between values.
func (p *partReader) readByte(r *Report, c byte) {
	switch c {
	case ' ', '\t', '\n', '\r':
	case ':':
		p.hasName = true
	case ',':
		p.hasName = false
	case '}', ']':
		p.endContainer(r, c)
	case '"':
		if p.depth > 0 && p.ends[p.depth-1] == '}' && !p.hasName {
			p.place, p.name = inName, append(p.name[:0], c)
			return
		}
		p.place = inString
		p.beginValue(r, c)
	case '{', '[':
		p.beginValue(r, c)
	default:
		p.place = inScalar
		p.beginValue(r, c)
	}
}

// beginValue reads the first byte of a value. What is kept of a container in which nothing is read is a 0.
func (p *partReader) beginValue(r *Report, c byte) {
	shape, isContainer := p.nextShape(r, c), c == '{' || c == '['
	isLeaf := shape != nil && shape.elements == nil && shape.other == nil && len(shape.members) == 0
	if shape == nil || isContainer && (isLeaf || p.depth == maxKeptDepth) {
		if shape != nil {
			p.keepName()
			p.keep('0')
		}
		p.skipping = true
		if isContainer {
			p.open = 1
		}
		return
	}
	p.keepName()
	p.from = len(p.kept)
	p.keep(c)
	if isContainer {
		p.around[p.depth], p.ends[p.depth] = shape, c+2 // in ASCII, { and [ are two before } and ]
		p.depth++
		p.hasName = false
	}
}

// nextShape returns the shape of the next value, which starts with c, nil if it is not to be kept. Of the content only
// the reason is kept why it has ended, which Anthropic has in a delta.
func (p *partReader) nextShape(r *Report, c byte) (shape *jsonShape[Report]) {
	if p.depth == 0 {
		return formats[r.Format].report
	}
	outer := p.around[p.depth-1]
	if shape = outer.elements; p.ends[p.depth-1] == '}' {
		scan := strict.Scanner{Data: p.name}
		if len(p.name) > maxKeptName || !scan.Value(1) {
			return nil
		}
		var name [maxKeptName]byte
		spelled, _ := strict.AppendUnquoted(name[:0], p.name)
		shape = outer.member(spelled)
	}
	if shape == nil {
		return nil
	}
	switch path := shape.path; {
	case path == "response", path == "item":
		p.repeats = p.repeats || p.depth == 1
	case path == "content.stop_reason", path == "content" && c == '{':
	case path == "output", strings.HasPrefix(path, "content"):
		p.inOutput = p.repeats
		return nil
	}
	return shape
}

// endContainer reads the end of an array or object, and adds the object that is complete then.
func (p *partReader) endContainer(r *Report, c byte) {
	if p.depth == 0 {
		return
	}
	p.keep(c)
	p.depth--
	p.hasName = true
	if p.depth > 0 {
		return
	}
	if !p.lost {
		_, _ = r.Read(p.kept) // what cannot be read is unread anyway
	}
	p.kept, p.lost, p.hasName = p.kept[:0], false, false
}

// keepName keeps the name of the next value, and the comma before it.
func (p *partReader) keepName() {
	if p.depth == 0 {
		return
	}
	if last := p.kept[len(p.kept)-1]; last != '{' && last != '[' {
		p.keep(',')
	}
	if p.ends[p.depth-1] == '}' {
		p.keep(p.name...)
		p.keep(':')
	}
}

// keepText keeps a part of a name, a string or a scalar. One that is too long is a 0.
func (p *partReader) keepText(text []byte) {
	if p.place == inName {
		p.name = append(p.name, text[:min(len(text), maxKeptName+1-min(len(p.name), maxKeptName+1))]...)
		return
	}
	if p.skipping {
		return
	}
	if len(p.kept)-p.from+len(text) > maxKeptText {
		p.kept, p.skipping = p.kept[:p.from], true
		text = []byte{'0'}
	}
	p.keep(text...)
}

// keep keeps bytes if there is room.
func (p *partReader) keep(bytes ...byte) {
	if len(p.kept)+len(bytes) > maxKept {
		p.lost = true
		return
	}
	p.kept = append(p.kept, bytes...)
}
