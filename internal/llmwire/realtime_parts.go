package llmwire

import (
	"bytes"

	"tollgate/internal/strict"
)

const (
	maxKeptString = 192 // bytes of a string that jsonParts keeps, quotes included
	wordBits      = 64
)

// A jsonParts reads a JSON object (RFC 8259) strictly, in one pass, while it comes in parts of any size. It accepts
// what jsonWalker accepts. It allocates nothing, and needs the same memory for an object of any size. The zero value is
// ready to read one.
type jsonParts struct {
	state   partsState
	depth   int                               // arrays and objects that are open
	isArray [maxJSONDepth/wordBits + 1]uint64 // a bit for each depth: an array is open there

	isName  bool   // the string that is read is the name of a member
	word    string // what is left of true, false or null
	digits  int    // hexadecimal ones that are left of an escape
	unit    int    // that they spell
	length  int64  // bytes that the last string spells, in UTF-8
	kept    [maxKeptString]byte
	keptLen int // of the last string or name; more than maxKeptString if it is longer
}

// A partsState says what the next byte may be.
type partsState uint8

const (
	atStart        partsState = iota // of the object
	atValue                          // after a colon, or a comma in an array
	atFirstElement                   // a value, or the end of an array
	atFirstName                      // a name, or the end of an object
	atName                           // after a comma in an object
	atColon
	afterValue // a comma, or the end of what is open
	atEnd      // after the object
	inText     // a string or name
	inEscape
	inHex
	inWord
	afterMinus // in a number: a digit
	afterZero
	inDigits
	afterPoint
	inFraction
	afterE
	afterESign
	inExponent
)

// A jsonToken says what was read last.
type jsonToken uint8

const (
	noToken      jsonToken = iota // the part has ended
	nameToken                     // a name: text returns it
	stringToken                   // a string: text returns it
	scalarToken                   // the first byte of another scalar
	openToken                     // the start of an array or object, which depth includes
	closeToken                    // the end of one, which depth does not include any more
	invalidToken                  // the byte that no such object can have there
)

// next reads the part up to the next token, and returns how many bytes of the part it has read.
func (j *jsonParts) next(part []byte) (n int, token jsonToken) {
	for n < len(part) && token == noToken {
		if j.state == inText {
			plain := strict.PlainBytes(part[n:])
			j.keep(part[n : n+plain])
			j.length += int64(plain)
			if n += plain; n == len(part) {
				return n, noToken
			}
		}
		token = j.step(part[n])
		n++
	}
	return n, token
}

// isDone reports whether the object has ended.
func (j *jsonParts) isDone() bool { return j.state == atEnd }

// text returns what the last string or name spells, in the memory of j or buf. It is nil if that is too long to be
// kept, and has U+FFFD for half of a surrogate pair.
func (j *jsonParts) text(buf []byte) []byte {
	if j.keptLen > maxKeptString {
		return nil
	}
	spelling := j.kept[:j.keptLen]
	if bytes.IndexByte(spelling, '\\') < 0 {
		return spelling[1 : len(spelling)-1]
	}
	text, _ := strict.AppendUnquoted(buf[:0], spelling)
	return text
}

func (j *jsonParts) keep(text []byte) {
	if j.keptLen < maxKeptString {
		copy(j.kept[j.keptLen:], text)
	}
	j.keptLen += len(text)
}

// step reads one byte. It is not plain text of a string.
func (j *jsonParts) step(c byte) jsonToken {
	switch j.state {
	case inText:
		return j.stepText(c)
	case inEscape, inHex:
		return j.stepEscape(c)
	case inWord:
		if c != j.word[0] {
			return invalidToken
		}
		if j.word = j.word[1:]; j.word == "" {
			j.state = afterValue
		}
		return noToken
	}
	if j.state >= afterMinus {
		return j.stepNumber(c)
	}
	if c == ' ' || c == '\t' || c == '\n' || c == '\r' {
		return noToken
	}
	return j.stepStructure(c)
}

// stepStructure reads a byte that is not white space between strings and other scalars.
func (j *jsonParts) stepStructure(c byte) jsonToken {
	switch j.state {
	case atStart:
		if c == '{' {
			return j.open(c)
		}
	case atFirstName, atName:
		if c == '}' && j.state == atFirstName {
			return j.close()
		}
		return j.beginText(c, true)
	case atColon:
		if c == ':' {
			j.state = atValue
			return noToken
		}
	case atFirstElement, atValue:
		if c == ']' && j.state == atFirstElement {
			return j.close()
		}
		return j.beginValue(c)
	case afterValue:
		return j.stepAfterValue(c)
	}
	return invalidToken
}

func (j *jsonParts) stepAfterValue(c byte) jsonToken {
	end, next := byte('}'), atName
	if j.inArray() {
		end, next = ']', atValue
	}
	switch c {
	case ',':
		j.state = next
		return noToken
	case end:
		return j.close()
	}
	return invalidToken
}

func (j *jsonParts) inArray() bool {
	return j.isArray[j.depth/wordBits]&(1<<(j.depth%wordBits)) != 0
}

func (j *jsonParts) open(c byte) jsonToken {
	j.depth++
	bit := uint64(1) << (j.depth % wordBits)
	if c == '[' {
		j.state = atFirstElement
		j.isArray[j.depth/wordBits] |= bit
	} else {
		j.state = atFirstName
		j.isArray[j.depth/wordBits] &^= bit
	}
	return openToken
}

func (j *jsonParts) close() jsonToken {
	j.depth--
	j.state = afterValue
	if j.depth == 0 {
		j.state = atEnd
	}
	return closeToken
}

// beginText reads the quote at the start of a name or string.
func (j *jsonParts) beginText(c byte, isName bool) jsonToken {
	if c != '"' {
		return invalidToken
	}
	j.state, j.isName, j.length = inText, isName, 0
	j.kept[0], j.keptLen = c, 1
	return noToken
}

// beginValue reads the first byte of a value.
func (j *jsonParts) beginValue(c byte) jsonToken {
	switch {
	case j.depth == maxJSONDepth:
		return invalidToken
	case c == '{' || c == '[':
		return j.open(c)
	case c == '"':
		return j.beginText(c, false)
	case c == 't':
		j.state, j.word = inWord, "rue"
	case c == 'f':
		j.state, j.word = inWord, "alse"
	case c == 'n':
		j.state, j.word = inWord, "ull"
	case c == '-':
		j.state = afterMinus
	case c == '0':
		j.state = afterZero
	case isDigit(c):
		j.state = inDigits
	default:
		return invalidToken
	}
	return scalarToken
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// stepText reads a byte of a string that does not stand for itself.
func (j *jsonParts) stepText(c byte) jsonToken {
	switch c {
	case '\\':
		j.keepByte(c)
		j.state = inEscape
		return noToken
	case '"':
		j.keepByte(c)
		if j.isName {
			j.state = atColon
			return nameToken
		}
		j.state = afterValue
		return stringToken
	}
	return invalidToken // a control character
}

func (j *jsonParts) keepByte(c byte) {
	if j.keptLen < maxKeptString {
		j.kept[j.keptLen] = c
	}
	j.keptLen++
}

// stepEscape reads a byte after a backslash.
func (j *jsonParts) stepEscape(c byte) jsonToken {
	j.keepByte(c)
	if j.state == inEscape {
		switch c {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			j.length++
			j.state = inText
		case 'u':
			j.state, j.digits, j.unit = inHex, 4, 0
		default:
			return invalidToken
		}
		return noToken
	}
	switch lower := c | 0x20; {
	case isDigit(c):
		j.unit = j.unit<<4 | int(c-'0')
	case 'a' <= lower && lower <= 'f':
		j.unit = j.unit<<4 | int(lower-'a'+10)
	default:
		return invalidToken
	}
	if j.digits--; j.digits == 0 {
		j.length += unitBytes(j.unit)
		j.state = inText
	}
	return noToken
}

// unitBytes returns how long a UTF-16 code unit is in UTF-8. Two surrogates are four bytes.
func unitBytes(unit int) int64 {
	switch {
	case unit < 0x80:
		return 1
	case unit < 0x800, 0xd800 <= unit && unit < 0xe000:
		return 2
	}
	return 3
}

// Kinds of bytes in a number.
const (
	zeroByte = iota
	digitByte
	pointByte
	exponentByte
	signByte
	otherByte
	kindsOfBytes
)

func numberByte(c byte) int {
	switch {
	case c == '0':
		return zeroByte
	case '1' <= c && c <= '9':
		return digitByte
	case c == '.':
		return pointByte
	case c == 'e' || c == 'E':
		return exponentByte
	case c == '+' || c == '-':
		return signByte
	}
	return otherByte
}

// numberSteps has the state in a number after a byte of a kind. A byte that does not belong there has none.
var numberSteps = [...][kindsOfBytes]partsState{
	afterMinus: {zeroByte: afterZero, digitByte: inDigits},
	afterZero:  {pointByte: afterPoint, exponentByte: afterE},
	inDigits:   {zeroByte: inDigits, digitByte: inDigits, pointByte: afterPoint, exponentByte: afterE},
	afterPoint: {zeroByte: inFraction, digitByte: inFraction},
	inFraction: {zeroByte: inFraction, digitByte: inFraction, exponentByte: afterE},
	afterE:     {zeroByte: inExponent, digitByte: inExponent, signByte: afterESign},
	afterESign: {zeroByte: inExponent, digitByte: inExponent},
	inExponent: {zeroByte: inExponent, digitByte: inExponent},
}

// stepNumber reads a byte in or after a number.
func (j *jsonParts) stepNumber(c byte) jsonToken {
	if next := numberSteps[j.state][numberByte(c)]; next != atStart {
		j.state = next
		return noToken
	}
	switch j.state {
	case afterZero, inDigits, inFraction, inExponent:
		j.state = afterValue
		return j.step(c)
	}
	return invalidToken
}
