// Written by `extism-host types greeter.yaml`: change the schema, then run it again.

export type Mood = 'happy' | 'sad'

export interface Greeter {
  /**
   * Answers with the person.
   */
  echo: {
    input: Person
    output: Person
  }
  fail: {
    input: string
    output: string
  }
  count: {
    output: Uint8Array
  }
}
/**
 * Somebody to greet.
 */
export interface Person {
  /**
   * The full name.
   */
  name: string
  age?: number | null
  mood?: Mood
  friend?: Person | null
}
