package soundlength

import (
	"encoding/binary"
	"strings"
	"testing"
)

// wav returns a WAV with the given numbers in its header, and chunks before its data.
func wav(tag, channels uint16, rate, byteRate uint32, block, bits uint16, size uint32, data int, before ...string) string {
	format := binary.LittleEndian.AppendUint16(nil, tag)
	format = binary.LittleEndian.AppendUint16(format, channels)
	format = binary.LittleEndian.AppendUint32(format, rate)
	format = binary.LittleEndian.AppendUint32(format, byteRate)
	format = binary.LittleEndian.AppendUint16(format, block)
	format = binary.LittleEndian.AppendUint16(format, bits)
	return "RIFF\xff\xff\xff\xffWAVE" + strings.Join(before, "") + chunk("fmt ", len(format), string(format)) +
		chunk("data", int(size), strings.Repeat("\x00", data))
}

func chunk(name string, size int, content string) string {
	return name + string(binary.LittleEndian.AppendUint32(nil, uint32(size))) + content
}

// flac returns a FLAC with the given numbers in its header, a block of tags, and frames of that many bytes.
func flac(rate, channels, bits, samples uint64, tags, frames int) string {
	info := strings.Repeat("\x00", 10) +
		string(binary.BigEndian.AppendUint64(nil, rate<<44|(channels-1)<<41|(bits-1)<<36|samples)) + strings.Repeat("\x00", 16)
	return "fLaC\x00\x00\x00\x22" + info + string(binary.BigEndian.AppendUint32(nil, 0x84<<24|uint32(tags))) +
		strings.Repeat("t", tags) + strings.Repeat("f", frames)
}

func TestOf(t *testing.T) {
	t.Parallel()
	const unknown = -1
	second := wav(1, 1, 16000, 32000, 2, 16, 32000, 32000)
	extensible := chunk("fmt ", 40, second[20:34]+"\x10\x00\x16\x00\x10\x00\x04\x00\x00\x00\x01\x00"+strings.Repeat("\x00", 14))
	for name, test := range map[string]struct {
		file string
		want int64
	}{
		"a second":            {second, 1},
		"3.5 seconds":         {wav(1, 1, 16000, 32000, 2, 16, 112000, 112000), 4},
		"a sample more":       {wav(1, 1, 16000, 32000, 2, 16, 32002, 32002), 2},
		"stereo, 24 bits":     {wav(1, 2, 48000, 288000, 6, 24, 576000, 576000), 2},
		"floats":              {wav(3, 1, 8000, 32000, 4, 32, 64000, 64000), 2},
		"A-law":               {wav(6, 1, 8000, 8000, 1, 8, 24000, 24000), 3},
		"µ-law":               {wav(7, 1, 8000, 8000, 1, 8, 24000, 24000), 3},
		"no data":             {wav(1, 1, 16000, 32000, 2, 16, 0, 0), 1},
		"chunks before":       {wav(1, 1, 16000, 32000, 2, 16, 64000, 64000, chunk("LIST", 3, "abc\x00"), chunk("bext", 2, "ab")), 2},
		"size too small":      {wav(1, 1, 16000, 32000, 2, 16, 2, 96000), 3},
		"size 0":              {wav(1, 1, 16000, 32000, 2, 16, 0, 96000), 3},
		"size of a pipe":      {wav(1, 1, 16000, 32000, 2, 16, 1<<32-1, 96000), 3},
		"byte rate too large": {wav(1, 1, 16000, 1<<31, 2, 16, 96000, 96000), 3},
		"byte rate 0":         {wav(1, 1, 16000, 0, 2, 16, 96000, 96000), unknown},
		"block too large":     {wav(1, 1, 16000, 32000, 60000, 16, 96000, 96000), 3},
		"bits too many":       {wav(1, 1, 16000, 1<<31, 60000, 64, 96000, 96000), 1},
		"too many bits":       {wav(1, 1, 16000, 1<<31, 60000, 65, 96000, 96000), unknown},
		"channels too many":   {wav(1, 60000, 16000, 1<<31, 60000, 16, 96000, 96000), unknown},
		"samples too many":    {wav(1, 1, 1<<31, 1<<31, 2, 16, 96000, 96000), unknown},
		"samples 0":           {wav(1, 1, 0, 32000, 2, 16, 96000, 96000), unknown},
		"block 0":             {wav(1, 1, 16000, 32000, 0, 16, 96000, 96000), unknown},
		"ADPCM":               {wav(2, 1, 16000, 8000, 256, 4, 96000, 96000), unknown},
		"MP3":                 {wav(0x55, 1, 16000, 1<<31, 1, 0, 96000, 96000), unknown},
		"extensible": {second[:12] + strings.Replace(extensible, "\x01\x00", "\xfe\xff", 1) +
			chunk("data", 64000, strings.Repeat("\x00", 64000)), 2},
		"extensible, too short": {wav(0xfffe, 1, 16000, 32000, 2, 16, 96000, 96000), unknown},
		"two formats":           {second[:12] + second[12:36] + second[12:], unknown},
		"format after data":     {second[:12] + second[36:] + second[12:36], unknown},
		"chunk beyond the end":  {second[:36] + chunk("LIST", 1<<30, "") + second[36:], unknown},
		"a short format":        {second[:12] + chunk("fmt ", 2, "\x01\x00") + second[36:], unknown},
		"no chunks":             {second[:12], unknown},
		"cut in a chunk":        {second[:30], unknown},
		"big endian":            {"RIFX" + second[4:], unknown},

		"FLAC, 10 seconds":          {flac(44100, 2, 16, 441000, 4, 100), 10},
		"FLAC, a sample more":       {flac(44100, 2, 16, 441001, 4, 100), 11},
		"FLAC, samples not known":   {flac(44100, 2, 16, 0, 4, 100), unknown},
		"FLAC, samples too few":     {flac(8000, 1, 8, 1, 0, 80000), 10},
		"FLAC, tags are no sound":   {flac(8000, 1, 8, 1, 80000, 8000), 1},
		"FLAC, all of 36 bits":      {flac(1, 8, 32, 1<<36-1, 0, 0), 1<<36 - 1},
		"FLAC, rate 0":              {flac(0, 1, 16, 1000, 0, 10), unknown},
		"FLAC, rate too large":      {flac(1<<20-1, 1, 16, 1000, 0, 10), unknown},
		"FLAC, another block":       {"fLaC\x01\x00\x00\x22" + flac(8000, 1, 8, 8000, 0, 0)[8:], unknown},
		"FLAC, a block too long":    {"fLaC\x00\x00\x00\x23" + flac(8000, 1, 8, 8000, 0, 0)[8:], unknown},
		"FLAC, tags beyond the end": {flac(8000, 1, 8, 8000, 1<<20, 0)[:100], 1},
		"FLAC, cut":                 {flac(8000, 1, 8, 8000, 0, 0)[:41], unknown},

		"MP3 frames": {"\xff\xfb\x90\x00" + strings.Repeat("a", 1000), unknown},
		"ID3":        {"ID3\x04" + second, unknown},
		"nothing":    {"", unknown},
	} {
		got, ok := Of([]byte(test.file))
		if !ok {
			got = unknown
		}
		if got != test.want {
			t.Errorf("%s: %d seconds, want %d", name, got, test.want)
		}
	}
}

// Whatever a file begins with, it is read or not, without a panic.
func FuzzOf(f *testing.F) {
	f.Add([]byte(wav(1, 1, 16000, 32000, 2, 16, 32000, 100)))
	f.Add([]byte(flac(44100, 2, 16, 441000, 4, 100)))
	f.Fuzz(func(t *testing.T, file []byte) {
		if got, _ := Of(file); got < 1 {
			t.Errorf("%d seconds", got)
		}
	})
}
