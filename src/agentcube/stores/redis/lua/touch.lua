-- Times and ids in turn. XX: unknown ids are ignored; GT: never backwards.
even_when_full()
redis.call('ZADD', key('active'), 'XX', 'GT', unpack(ARGV))
return {'ok'}
