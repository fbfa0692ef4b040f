package strict_test

import (
	"errors"
	"fmt"

	"tollgate/internal/strict"
)

func ExampleDecode() {
	var name string
	var ages []int64
	rules := strict.Rules{
		"name": strict.String(&name),
		"ages": strict.ArrayOf(func(wrong *strict.Problems, value []byte) bool {
			var age int64
			ok := strict.Int(&age, 0, 150)(wrong, value)
			ages = append(ages, age)
			return ok
		}),
	}
	fmt.Println(strict.Decode([]byte(`{"name": "Ann", "ages": [7, 1e1]}`), rules, "name"), name, ages)

	err := strict.Decode([]byte(`{"Name": "Ann", "ages": [7, null, 151]}`), rules, "name")
	if bad, ok := errors.AsType[*strict.Error](err); ok {
		for _, sentence := range bad.Problems.Sentences {
			fmt.Println(sentence)
		}
	}
	// Output:
	// <nil> Ann [7 10]
	// Name is not a known member
	// ages[1] must be a whole number from 0 to 150
	// ages[2] must be a whole number from 0 to 150
	// name is missing
}
