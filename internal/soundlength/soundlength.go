// Package soundlength finds out how long the sound in a file is, by its header.
//
// A header can lie. Where it says less than the rest of the file can be, or where another program might read something
// else, the longer time counts.
package soundlength

import (
	"bytes"
	"encoding/binary"
)

const (
	maxRate     = 768_000 // samples a second: more are no sound
	maxChannels = 32
)

// Of returns the seconds of the sound in a file, rounded up, at least 1. ok is false if the file is neither a WAV of
// uncompressed samples (PCM, A-law or µ-law) nor a FLAC whose header says how many samples there are.
func Of(file []byte) (seconds int64, ok bool) {
	switch {
	case len(file) >= 12 && string(file[:4]) == "RIFF" && string(file[8:12]) == "WAVE":
		seconds, ok = ofWAV(file)
	case bytes.HasPrefix(file, []byte("fLaC")):
		seconds, ok = ofFLAC(file)
	}
	return max(seconds, 1), ok
}

// ofWAV reads the chunks up to the first with data ("Multimedia Programming Interface and Data Specifications 1.0" of
// IBM and Microsoft, chapter 3). Everything behind the start of that counts as data: writers that do not know its size
// beforehand put any number there, and some readers ignore it.
func ofWAV(file []byte) (seconds int64, ok bool) {
	rate := int64(0) // bytes of a second
	for at := int64(12); at+8 <= int64(len(file)); {
		name, size := string(file[at:at+4]), int64(binary.LittleEndian.Uint32(file[at+4:]))
		at += 8
		switch {
		case name == "data":
			return divideUp(int64(len(file))-at, rate)
		case name == "fmt " && rate > 0, at+size > int64(len(file)): // which one counts is not certain
			return 0, false
		case name == "fmt ":
			rate = byteRate(file[at : at+size])
		}
		at += size + size%2
	}
	return 0, false
}

// byteRate returns how many bytes a second of a WAV with a format has, 0 if that does not follow from it. Of numbers
// that contradict each other, those with the fewest bytes count.
func byteRate(format []byte) int64 {
	if len(format) < 16 {
		return 0
	}
	short := func(at int) int64 { return int64(binary.LittleEndian.Uint16(format[at:])) }
	long := func(at int) int64 { return int64(binary.LittleEndian.Uint32(format[at:])) }
	tag, channels, samples, bits := short(0), short(2), long(4), short(14)
	if tag == 0xfffe && len(format) >= 26 { // the tag proper is the start of the GUID in the extension
		tag = short(24)
	}
	frame := min(short(12), channels*((bits+7)/8))
	isPlain := tag == 1 || tag == 3 || tag == 6 || tag == 7 // PCM of integers or floats, A-law, µ-law
	if !isPlain || channels > maxChannels || samples > maxRate || bits > 64 {
		return 0
	}
	return min(samples*frame, long(8))
}

// ofFLAC reads the block STREAMINFO, which comes first, and passes over the other blocks of metadata (RFC 9639, section
// 8). What follows them is no larger than its samples are without compression, but for a few bytes of each frame.
func ofFLAC(file []byte) (seconds int64, ok bool) {
	const marker, header, info = 4, 4, 34 // bytes of what comes before the block, and of the block
	if len(file) < marker+header+info || binary.BigEndian.Uint32(file[marker:])&0x7fffffff != info {
		return 0, false
	}
	// 20 bits of samples a second, 3 of channels - 1, 5 of bits of a sample - 1, 36 of samples
	packed := binary.BigEndian.Uint64(file[marker+header+10:])
	rate, channels, bits := int64(packed>>44), int64(packed>>41&7+1), int64(packed>>36&31+1)
	samples := int64(packed & (1<<36 - 1))
	if samples == 0 || rate > maxRate {
		return 0, false
	}
	at, isLast := int64(marker), false
	for !isLast && at+header <= int64(len(file)) {
		block := binary.BigEndian.Uint32(file[at:])
		isLast = block>>31 == 1
		at += header + int64(block&0xffffff)
	}
	seconds, ok = divideUp(samples, rate)
	least, _ := divideUp(8*(int64(len(file))-at), rate*channels*bits)
	return max(seconds, least), ok
}

// divideUp returns n / unit, rounded up, and false if unit is not positive.
func divideUp(n, unit int64) (int64, bool) {
	if unit <= 0 {
		return 0, false
	}
	return (max(n, 0) + unit - 1) / unit, true
}
